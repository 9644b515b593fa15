"""short-texts: every topic and feeling equally often, nothing told twice, and no class of the library in two subsets."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.studies._worlds.opinions import DOMAINS
from luthier.studies._worlds.short_texts import TOPICS, dealt


def made(ctx, **fields):
    artifact = build("step", {"use": "short-texts", **fields}).run({}, ctx)
    return artifact, {name: list(artifact.examples(name)) for name in artifact.subsets}


def test_topics_are_those_of_the_modules_and_equally_often_in_every_subset(make_ctx):
    artifact, rows = made(make_ctx("rows"))
    assert artifact.meta["labels"] == sorted(TOPICS) and {n: len(r) for n, r in rows.items()} == {
        "train": 300, "dev": 120, "test": 400}
    for part in rows.values():
        counts = Counter(r.label for r in part)
        assert set(counts) == set(TOPICS) and max(counts.values()) - min(counts.values()) <= 1
    everything = [r for part in rows.values() for r in part]
    assert len({r.turns[0].text for r in everything}) == len({r.id for r in everything}) == len(everything)
    module_of = {module: topic for topic, modules in TOPICS.items() for module in modules}
    for row in everything[::20]:
        module = max((m for m in module_of if row.id.startswith(f"{m}.")), key=len)
        thing = importlib.import_module(module)
        for part in row.id.removeprefix(f"{module}.").split("."):
            thing = getattr(thing, part)
        assert module_of[module] == row.label
        assert " ".join(inspect.cleandoc(thing.__doc__).split()).startswith(" ".join(row.turns[0].text.split()))


def test_what_belongs_together_is_in_one_subset(make_ctx):
    _, rows = made(make_ctx("rows"))
    clusters = {name: {r.cluster for r in part} for name, part in rows.items()}
    assert all(not clusters[a] & clusters[b] for a in clusters for b in clusters if a < b)
    assert any(len([r for r in rows["test"] if r.cluster == c]) > 1 for c in clusters["test"]), "sentences of one class"


def test_feelings_are_those_of_most_remarks(make_ctx):
    _, rows = made(make_ctx("rows"), problem="sentiment", train=40, dev=8, tests=200)
    for part in rows.values():
        assert Counter(r.label for r in part)["good"] * 2 == len(part)
    told = {f"{remark[0].upper()}{remark[1:]}.": side == 0 for sides in DOMAINS.values() for aspect in sides.values()
            for side, remarks in enumerate(aspect) for remark in remarks}
    mixed = 0
    for row in rows["test"]:
        good = [side for remark, side in told.items() if remark in row.turns[0].text]
        assert len(good) == 3 and row.label == ("good" if sum(good) > 1 else "bad")
        mixed += len(set(good)) > 1
    assert 0.45 < mixed / len(rows["test"]) < 0.75, "0.6 are asked for"


def test_rows_that_are_not_there_are_refused(make_ctx):
    with pytest.raises(UserError, match="sentences are here, and 9150 are wanted"):
        made(make_ctx("many"), train=9000, dev=50, tests=100)
    rows = [Example(f"{label}-{n}", (Turn("user", (Part("x"),)),), task="classify", cluster=label, label=label)
            for label in "ab" for n in range(4)]
    with pytest.raises(UserError, match="2 rows of a are missing in train, since all sentences of a class stay together"):
        dealt(rows, {"test": 4, "train": 4}, Rng(0))
