"""Underlined headings of plain text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.techniques.data.read_text import ReadText


def parse(text: str) -> list[tuple[tuple[str, ...], str]]:
    return [(s.headings, s.text) for s in ReadText().parse(text)[1]]


@pytest.mark.parametrize(("text", "expected"), [
    ("only\n\ntext", [((), "only\n\ntext")]),
    ("====\nBook\n====\n\nPart\n====\n\nCut\n---\nx\n\nPart 2\n======\ny",
     [(("Book", "Part", "Cut"), "x"), (("Book", "Part 2"), "y")]),
    ("Title\n=====\nSub\n---\nx", [(("Title", "Sub"), "x")]),
    ("text\nTable head\n----------\nx", [((), "text\nTable head\n----------\nx")]),
    ("Too long a title\n---\nx", [((), "Too long a title\n---\nx")]),
    ("\n\n-----\n\nx", [((), "-----\n\nx")]),
    ("code::\n\n   Title\n   =====\n", [((), "code::\n\n   Title\n   =====")]),
    ("====\nno end", [((), "====\nno end")]),
    ("# no Markdown\nx", [((), "# no Markdown\nx")]),
])
def test_cases(text, expected):
    assert parse(text) == expected


def test_suffixes():
    assert ReadText.suffixes == (".txt", ".rst")


LINES = ["Alpha", "beta gamma", "", "=====", "---", "~~~~~~~~~~~~", "  in", "- x"]


@given(st.lists(st.sampled_from(LINES), max_size=25))
def test_every_word_is_in_a_section_or_a_heading(lines):
    text = "\n".join(lines)
    sections = ReadText().parse(text)[1]
    found = " ".join(s.text for s in sections) + " " + " ".join(h for s in sections for h in s.headings)
    for word in ("Alpha", "beta gamma", "in", "- x"):
        assert (word in found) == (word in text)
