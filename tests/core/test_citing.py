"""citing: what is written is read again, brackets elsewhere stay, and the supporting sentence is the closest one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.citing import ABSTENTION, cite, numbered, parse, supporting, words

TEXT = st.text(alphabet="ab 1[],.\n", max_size=20).map(str.rstrip)


@given(TEXT, st.integers(1, 999))
def test_a_citation_is_read_as_it_was_written(answer, number):
    assert parse(cite(answer, number)) == (answer, (number,))


@pytest.mark.parametrize(("text", "answer", "numbers"), [
    ("ebony [2]", "ebony", (2,)), ("ebony [1][3] ", "ebony", (1, 3)), ("ebony [1, 3]", "ebony", (1, 3)),
    ("ebony [2][2]", "ebony", (2,)), ("[2]", "", (2,)), ("x[2]", "x[2]", ()), ("a [1] b", "a [1] b", ()),
    ("ebony [two]", "ebony [two]", ()), ("ebony [2].", "ebony [2].", ()), ("", "", ()), ("x [1] [2]", "x [1]", (2,)),
    ("ebony", "ebony", ()), ("ebony [1234]", "ebony [1234]", ()),
])
def test_hand_cases(text, answer, numbers):
    assert parse(text) == (answer, numbers)


def test_passages_are_numbered_from_one():
    assert numbered(["a", "b"]) == ["[1] a", "[2] b"] and numbered([]) == []
    assert parse(ABSTENTION) == (ABSTENTION, ())


@pytest.mark.parametrize(("text", "answer", "sentence"), [
    ("Glue is warm. A peg is turned from ebony. Pegs wear.", "ebony peg", "A peg is turned from ebony."),
    ("A peg of ebony is nice and dark. Ebony peg.", "ebony peg", "Ebony peg."),  # equally many: the shorter one
    ("Ebony peg. Peg, ebony.", "peg", "Ebony peg."),  # equal: the first
    ("Nothing here.", "ebony", ""), ("", "ebony", ""), ("Ebony.", "", ""),
    ("木は硬い。膠は温かい。", "膠", "膠は温かい。"),
    ("One\n\ntwo lines\nof two.", "of", "two lines of two."),
])
def test_the_supporting_sentence(text, answer, sentence):
    assert supporting(text, answer) == sentence


def test_words_of_any_script():
    assert words("The peg_2, ÉTÉ! 木は x86") == ["the", "peg", "2", "été", "木", "は", "x86"]
