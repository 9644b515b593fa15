"""The first of equal or nearly equal passages stays; every other is accounted for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Passage
from luthier.techniques.data.near_duplicates import NearDuplicates

BASE = " ".join(f"word{i}" for i in range(100))


def passage(name: str, text: str) -> Passage:
    return Passage(name, text, "a.md", "a.md#")


def run(texts, ctx=None, **fields):
    return list(NearDuplicates(**fields).apply((passage(str(i), t) for i, t in enumerate(texts)), ctx))


def test_exact_up_to_case_and_space():
    rows = run([BASE, "other words", f"  {BASE.upper()}\n", "OTHER\twords "])
    assert [type(r) for r in rows] == [Passage, Passage, Dropped, Dropped]
    assert rows[2] == Dropped("2", "duplicate of 0", "same text")
    assert rows[3] == Dropped("3", "duplicate of 1", "same text")


def test_near_ones_above_the_threshold_only():
    near = BASE.replace("word50", "changed")  # 91 of 101 grams
    far = BASE.replace("word50", "changed").replace("word20", "x").replace("word80", "y")  # 81 of 111
    rows = run([BASE, near, far])
    assert rows[1] == Dropped("1", "duplicate of 0", "Jaccard 0.90")
    assert isinstance(rows[2], Passage)
    assert isinstance(run([BASE, far], threshold=0.7)[1], Dropped)
    assert isinstance(run([BASE, near], threshold=1)[1], Passage)


def test_a_repeat_of_a_dropped_text_names_the_passage_that_stays():
    near = BASE.replace("word50", "changed")
    assert [r.reason for r in run([BASE, near, near])[1:]] == ["duplicate of 0"] * 2


def test_short_and_wordless_texts_are_compared_whole():
    rows = run(["x = 1", "x = 2", "{}", "[]", "{ }"])
    assert [type(r) for r in rows] == [Passage] * 5


def test_threshold_bounds():
    with pytest.raises(UserError, match="threshold"):
        build("data_step", "near-duplicates:threshold=1.5")


TEXTS = ["a b c d e f", "A b c d e f ", "a b c d e g", "q", "", BASE, BASE + " more"]


@given(st.lists(st.sampled_from(TEXTS), max_size=12))
@settings(max_examples=30, deadline=None)
def test_every_row_comes_out_once_in_order_and_the_same_each_time(texts):
    rows = run(texts)
    assert [r.id for r in rows] == [str(i) for i in range(len(texts))]
    kept = {r.id for r in rows if isinstance(r, Passage)}
    for row in rows:
        if isinstance(row, Dropped):
            first = row.reason.removeprefix("duplicate of ")
            assert first in kept and int(first) < int(row.id)
    assert rows == run(texts)
