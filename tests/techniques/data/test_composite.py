"""Composites, checked against the rows that they were made of."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Dropped, question
from luthier.core.rng import Rng

ROWS = [question(f"{task}{i}", f"{task} {i}?", f"{task} {i}!", meta={"task": task}) for task in "abcd" for i in range(3)]


def made(rows, spec="composite:rows=40", seed=0):
    return list(build("data_step", spec).apply(iter(rows), SimpleNamespace(rng=Rng(seed))))


@pytest.mark.oracle(clause="each composite is rows of different tasks in order", against="the rows it was made of")
def test_a_composite_is_rows_of_different_tasks_in_order():
    known = {e.part("question"): (e.meta["task"], e.answer) for e in ROWS}
    found = made(ROWS)
    assert len({e.part("question") for e in found}) > 30
    for e in found:
        asked, said = e.part("question").split("\n"), e.answer.split("\n")
        assert [known[q][1] for q in asked] == said
        tasks = [known[q][0] for q in asked]
        assert len(set(tasks)) == 3
        assert e.meta["segments"] == [[t, q] for t, q in zip(tasks, asked, strict=True)] + \
            [[t, a] for t, a in zip(tasks, said, strict=True)]
    assert [e.answer for e in made(ROWS)] == [e.answer for e in found] != [e.answer for e in made(ROWS, seed=1)]


def test_what_can_not_be_part_of_one_is_dropped_by_name():
    odd = [question("x", "no task?", "no"), question("y", "two\nlines?", "no", meta={"task": "a"}),
           question("z", "no answer?", meta={"task": "a"})]
    found = [d for d in made([*ROWS, *odd], "composite:rows=1") if isinstance(d, Dropped)]
    assert [(d.id, d.reason) for d in found] == [("x", "no task"), ("y", "several lines"), ("z", "no question and answer")]


def test_too_few_tasks_are_refused():
    with pytest.raises(UserError, match=r"n = 5, and the rows are of 4 tasks \(a, b, c, d\)"):
        made(ROWS, "composite:n=5")
