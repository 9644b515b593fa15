"""show-passage: each row keeps its passage or loses it, by the seed and its own id alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from luthier.core.example import question
from luthier.core.rng import Rng
from luthier.techniques.data.show_passage import ShowPassage

ROWS = [question(f"q{i}", f"What is {i}?", "a number", passage=f"{i} is a number.", cluster="s") for i in range(400)]


def shown(ctx, share: float, rows=ROWS, seed: int = 0) -> dict[str, bool]:
    made = ShowPassage(share=share).apply(iter(rows), replace(ctx, rng=Rng(seed)))
    return {row.id: bool(row.part("passage")) for row in made}


def test_the_extremes(ctx):
    kept = list(ShowPassage(share=1).apply(iter(ROWS), ctx))
    assert [r.part("passage") for r in kept] == [f"[1] {r.part('passage')}" for r in ROWS]
    assert list(ShowPassage(share=1).apply(iter(kept), ctx)) == kept, "a number is given once"
    assert not any(shown(ctx, 0).values())


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_the_share_is_kept(ctx, share):
    assert sum(shown(ctx, share).values()) / len(ROWS) == pytest.approx(share, abs=0.08)


def test_only_the_passage_is_taken_out(ctx):
    for before, after in zip(ROWS, ShowPassage(share=0).apply(iter(ROWS), ctx), strict=True):
        assert after.part("question") == before.part("question") and after.answer == before.answer
        assert (after.id, after.cluster) == (before.id, before.cluster)


def test_a_row_is_drawn_by_its_id_whatever_stands_beside_it(ctx):
    whole = shown(ctx, 0.5)
    assert shown(ctx, 0.5, ROWS[::-3]) == {row.id: whole[row.id] for row in ROWS[::-3]}
    assert shown(ctx, 0.5, seed=1) != whole
    assert all(shown(ctx, 0.8)[name] for name, kept in whole.items() if kept), "a larger share only adds rows"
