"""Bulletins: who shares what, which questions meet in training and tests, and clicks of known shares."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.studies._worlds.bulletin_questions import WORDED
from luthier.studies._worlds.bulletins import called, told


def test_neighbours_share_weeks_and_pests_and_nothing_else():
    rows = told(6, 12, 0)
    by_crop = defaultdict(list)
    for advice in rows:
        by_crop[advice.crop].append(advice)
    for found in by_crop.values():
        for left, right in zip(found[::2], found[1::2], strict=True):
            assert (left.week, left.pest) == (right.week, right.pest) and left.state != right.state
    assert len({a.rate for a in rows}) > 40
    own = called(6, 12, 0)
    assert len(set(own.values())) == 18 and not any(word in a.text for word in own.values() for a in rows)


def test_questions_are_kept_apart_by_section_and_by_words(make_ctx):
    spec = {"use": "bulletin-questions", "states": 6, "held_states": 1, "known": 10, "unseen": 8}
    rows = build("step", spec).run({}, make_ctx("rows"))
    tests = build("step", {**spec, "subsets": ["known", "unseen", "state"]}).run({}, make_ctx("tests"))
    texts = build("step", {**spec, "subsets": ["statements", "pages"]}).run({}, make_ctx("texts"))
    sections = {name: {e.cluster for e in a.examples(name)} for a in (rows, tests, texts) for name in a.subsets}
    assert {n: len(s) for n, s in sections.items()} == {
        "all": 52, "known": 10, "unseen": 8, "state": 12, "statements": 10, "pages": 10}
    assert sections["known"] == sections["pages"] == sections["statements"] and sections["known"] < sections["all"]
    assert not sections["all"] & (sections["unseen"] | sections["state"]) and not sections["unseen"] & sections["state"]
    held = {section.partition("/")[0] for section in sections["state"]}
    assert len(held) == 1 and not any(s.startswith(f"{next(iter(held))}/") for s in sections["all"] | sections["unseen"])
    assert all(len(set(wordings)) == 3 for wordings in WORDED.values())
    for e in rows.examples("all"):
        assert e.answer in e.part("passage") and e.cluster.partition("/")[0] in e.part("question")


def test_a_world_that_is_too_small_is_refused(make_ctx):
    with pytest.raises(UserError, match="too few for 24 known and 24 unseen ones and others to train on. Raise states"):
        build("step", "bulletin-questions:states=3").run({}, make_ctx("rows"))


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_noise_is_a_share_of_the_clicked_pairs_and_tests_ask_for_pages_that_nobody_clicked(noise, make_ctx, pico_encoder):
    pages = build("step", "bulletins:states=10").run({}, make_ctx("pages"))
    step = build("step", f"bulletin-clicks:tested=20,noise={noise}")
    ctx = make_ctx("clicks")
    made = step.run({"documents": pages, "encoder": pico_encoder}, ctx)
    train, test = list(made.examples("train")), list(made.examples("test"))
    assert len(test) == 60 and len(list(made.examples("answered"))) == 20
    assert abs(1 - 300 / len(train) - noise) < 0.05  # 100 sections x 3 queries are answered by one page each
    asked = Counter(e.part("question") for e in train)
    assert max(asked.values()) == (2 if noise else 1)
    clicked, aimed = {e.source for e in train}, {e.cluster for e in test}
    assert len(clicked) >= 100 and (noise or not clicked & aimed)
    dealt = build("step", f"bulletin-clicks:tested=20,noise={noise},permuted=true").run(
        {"documents": pages, "encoder": pico_encoder}, make_ctx("dealt"))
    pairs = [{(e.part("question"), e.meta["document"]) for e in rows} for rows in (train, dealt.examples("train"))]
    assert pairs[0] == pairs[1]
