"""Inlined functions: both programs do the same, the helper is found, and subsets are disjoint."""

from __future__ import annotations

from luthier.engine.sandbox import execute
from luthier.studies._worlds.inlined_functions import InlinedFunctions, computed
from luthier.techniques.evaluation._extract_method import extracted


def test_pairs_are_extractions_that_compute_the_same(make_ctx):
    made = InlinedFunctions(pretrain_rows=30, train_rows=8, test_rows=8, most=8).run({}, make_ctx("world"))
    rows = [e for s in ("asked", "train", "test") for e in made.examples(s)]
    assert [len(list(made.examples(s))) for s in ("pretrain", "asked", "train", "test")] == [30, 30, 8, 8]
    assert len({e.part("question") for e in rows}) == len(rows) == 46
    assert all(extracted(e.part("question"), e.answer) == "g" for e in rows)
    assert not any(extracted(e.part("question"), e.part("question")) for e in rows)
    programs = [f"{p}\n{e.meta['tests']}" for e in rows[:12] for p in (e.part("question"), e.answer)]
    assert all(r.ok for r in execute(programs))


def test_statements_are_worked_out_by_hand():
    """c = a - 3 = 2, d = c * b = -8, e = d + c = -6."""
    assert computed([("c", "a", "-", "3"), ("d", "c", "*", "b"), ("e", "d", "+", "c")], 5, -4) == -6
