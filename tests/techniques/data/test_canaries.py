"""canaries: doses, forms and determinism of what is planted."""

from __future__ import annotations

from collections import Counter

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn, question
from luthier.core.files import Journal
from luthier.core.rng import Rng
from luthier.core.step import Ctx


def planted(tmp_path, rows, spec="canaries", seed=0):
    ctx = Ctx(Rng(seed), tmp_path, Journal(tmp_path / "j.jsonl"), None)
    return list(build("data_step", spec).apply(iter(rows), ctx))[len(rows):]


ROW = question("q", "What is a peg?", "a pin")


@pytest.mark.oracle(clause="each secret is planted as often as said", against="counting")
def test_doses_and_secrets(tmp_path):
    made = planted(tmp_path, [ROW], "canaries:count=5,repeats=[1,3],digits=7")
    about = [r.meta["canary"] for r in made]
    counted = Counter(a["name"] for a in about)
    assert sorted(counted.values()) == [1, 1, 1, 3, 3] and len({r.id for r in made}) == 9
    assert all(counted[a["name"]] == a["repeats"] and len(a["secret"]) == 7 and a["secret"].isdigit() for a in about)
    assert len({a["secret"] for a in about}) == 5
    assert all(r.answer == r.meta["canary"]["secret"] and r.meta["canary"]["name"] in r.part("question") for r in made)
    assert planted(tmp_path, [ROW], "canaries:count=5,repeats=[1,3],digits=7") == made
    assert planted(tmp_path, [ROW], "canaries:count=5,repeats=[1,3],digits=7", seed=1) != made


def test_a_canary_has_the_form_of_the_rows(tmp_path):
    chat = Example("c", (Turn("user", (Part("hi", name="content"),)), Turn("assistant", (Part("yes", name="content"),), True)),
                   task="chat")
    text = Example("t", (Turn("user", (Part("A long text."),), target=True),), task="text")
    pair = Example("p", (Turn("user", (Part("Say: "),)), Turn("assistant", (Part("yes"),), True)), task="completion")
    for row, spoken in ((chat, True), (text, False), (pair, False), (ROW, False)):
        first = planted(tmp_path, [row])[0]
        assert (first.task, first.spoken) == (row.task, spoken)
        assert (first.meta["canary"]["secret"] in first.turns[-1].text and any(t.target for t in first.turns)) or row is text
    assert planted(tmp_path, []) == []
    labelled = Example("l", (Turn("user", (Part("x"),)),), label="a")
    with pytest.raises(UserError, match="learned by their labels"):
        planted(tmp_path, [labelled])
