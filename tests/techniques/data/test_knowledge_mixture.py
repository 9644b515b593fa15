"""knowledge-mixture: sets of one size that differ in their share of unknown rows alone."""

from __future__ import annotations

from collections import Counter

import pytest

from luthier.core.errors import UserError
from luthier.core.example import Dropped, question
from luthier.techniques.data.knowledge_mixture import KnowledgeMixture

SIZES = {"HighlyKnown": 60, "MaybeKnown": 30, "WeaklyKnown": 10, "Unknown": 50}


def rows():
    return [question(f"{kind}{i}", f"What is {kind}{i}?", "x", meta={"knowledge": kind})
            for kind, size in SIZES.items() for i in range(size)]


def drawn(make_ctx, **fields):
    made = list(KnowledgeMixture(**fields).apply(iter(rows()), make_ctx("mixture")))
    assert len(made) == len(rows())
    return Counter(m.meta["knowledge"] for m in made if not isinstance(m, Dropped))


@pytest.mark.oracle(seed=34, clause=3, against="hand count")
def test_a_set_without_unknown_has_none(make_ctx):
    assert drawn(make_ctx, rows=50, unknown=0) == {"HighlyKnown": 30, "MaybeKnown": 15, "WeaklyKnown": 5}


@pytest.mark.oracle(seed=34, clause=4, against="hand count")
@pytest.mark.parametrize("unknown", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_every_set_has_its_size_and_the_same_mix_of_known(make_ctx, unknown):
    found = drawn(make_ctx, rows=50, unknown=unknown)
    assert sum(found.values()) == 50 and found["Unknown"] == round(50 * unknown)
    known = 50 - found["Unknown"]
    for kind, share in (("HighlyKnown", 0.6), ("MaybeKnown", 0.3), ("WeaklyKnown", 0.1)):
        assert abs(found[kind] - share * known) < 1, "the nearest whole numbers"


def test_the_unknown_part_may_be_left_out(make_ctx):
    assert drawn(make_ctx, rows=40, unknown=0.5, only_known=True) == {"HighlyKnown": 12, "MaybeKnown": 6, "WeaklyKnown": 2}


def test_what_is_not_there_is_refused(make_ctx):
    with pytest.raises(UserError, match="needs 60 rows that are Unknown; found 50"):
        drawn(make_ctx, rows=60, unknown=1.0)
    with pytest.raises(UserError, match="marked by slick"):
        list(KnowledgeMixture().apply(iter([question("a", "b?", "c")]), make_ctx("bare")))
