"""headings: definitions become questions, sentences that only look like definitions don't, nothing is asked twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.example import Passage
from luthier.techniques.data.headings import Headings


def passage(text: str, *headings: str, id: str = "p", section: str = "s") -> Passage:
    return Passage(id, text, "d.md", section, headings)


def asked(*passages: Passage, **fields: int) -> list[tuple[str, str]]:
    """Questions with their answers, in order."""
    return [(row.part("question"), row.answer) for row in Headings(**fields).apply(iter(passages), None)]


@pytest.mark.parametrize(("text", "question", "answer"), [
    ("A module is a file of definitions.", "What is a module?", "a file of definitions"),
    ("An *iterator* is an object: it gives one item at a time.", "What is an iterator?",
     "an object: it gives one item at a time"),
    ("The `nut` is the strip at the end of the neck.", "What is the nut?", "the strip at the end of the neck"),
    ("The arguments are evaluated from left to right.", "What are arguments?", "evaluated from left to right"),
    ("A snake_case name is one with underscores.", "What is a snake_case name?", "one with underscores"),
    ("A **bar clamp** is\na rail with two jaws", "What is a bar clamp?", "a rail with two jaws"),
    ("Glue dries. A gluepot is a double kettle.", "What is a gluepot?", "a double kettle"),
])
def test_a_sentence_that_defines_a_term_becomes_a_question(text, question, answer):
    assert asked(passage(text)) == [(question, answer)]


@pytest.mark.parametrize("text", [
    "A module is loaded only once.",  # says what happens to it
    "A module is good.",
    "The following are the operators of the language.",  # the term is no thing
    "The result of the call is the value of its last line.",
    "If it is hot, a gluepot is the tool to use.",  # the middle of a longer sentence
    "The module, once loaded, is the value of its name.",
    "A very long compound noun phrase is the name to avoid.",
    "It is a file of definitions.",
    "- A tuple is a fixed list of things",
    "```\nA tuple is a fixed list of things.\n```",
    "| A tuple is a fixed list of things |",
    "A module is a " + "very " * 20 + "long story.",  # too long for an answer
])
def test_a_sentence_that_defines_nothing_is_left_alone(text):
    assert asked(passage(text)) == []


def test_a_heading_is_answered_by_what_is_said_first():
    text = "```\nopen(file, mode, more)\n```\n\nYes. Opens a file and returns it: A stream."
    assert asked(passage(text, "Files", "`open(file)`")) == [
        ("What does open(file) do?", "Opens a file and returns it")]
    assert asked(passage("Names live in scopes.", "Scopes")) == [("What is said about Scopes?", "Names live in scopes")]


def test_a_first_sentence_that_is_too_long_gives_its_first_short_clause():
    text = "Nothing at all, as far as is known so far, was ever said about it; it stays so."
    assert asked(passage(text, "Silence"), max_answer_words=5) == [("What is said about Silence?", "Nothing at all")]
    assert asked(passage(text, "Silence"), max_answer_words=2) == []


def test_a_long_heading_is_not_asked_about():
    assert asked(passage("It says quite a lot.", " ".join(["word"] * 11))) == []


def test_one_heading_question_a_section_from_the_first_passage_that_can_answer():
    pages = [passage("Yes.", "Scopes", id="p1"), passage("Names live in scopes.", "Scopes", id="p2"),
             passage("Blocks hold many names.", "Scopes", id="p3")]
    rows = list(Headings().apply(iter(pages), None))
    assert [(r.source, r.answer) for r in rows] == [("p2", "Names live in scopes")]


def test_nothing_is_asked_twice():
    first, again = "A module is a file of definitions.", "A module is a box of other things."
    assert asked(passage(first, id="p1"), passage(again, id="p2")) == [("What is a module?", "a file of definitions")]


def test_a_row_names_its_passage_section_and_writer():
    text = "A module is a file of definitions. A class is a maker of objects."
    one, two, three = Headings().apply(iter([passage(text, "Guide", "Words", id="d:7", section="d#Words")]), None)
    assert [r.id for r in (one, two, three)] == ["headings/d:7/0", "headings/d:7/1", "headings/d:7/2"]
    assert (one.source, one.cluster, one.part("passage")) == ("d:7", "d#Words", f"Guide / Words: {text}")
    assert one.meta == {"generator": "headings", "gold": ["d:7"], "headings": ["Guide", "Words"]}
    assert one.references == (one.answer,)


WORDS = ["A ", "The ", "module ", "*file* ", "`x`", '"with" ', "is ", "are ", "a ", "the ", "used ", "thing ", "of ",
         ". ", ": ", "; ", ", ", "\n", "\n\n", "**", "- ", "made by hands ", "Glue "]


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=30).map("".join), min_size=1, max_size=4),
       st.sampled_from(["", "Glue", "*f(x)*"]))
def test_an_answer_is_a_literal_part_of_its_passage_without_marks(texts, heading):
    pages = [passage(t, *filter(None, [heading]), id=str(i), section=str(i % 2)) for i, t in enumerate(texts)]
    rows = list(Headings().apply(iter(pages), None))
    for row in rows:
        plain = " ".join(row.part("passage").translate(str.maketrans("", "", '*`"')).split())
        assert row.answer and " ".join(row.answer.split()) in plain
    assert len({r.part("question") for r in rows}) == len({r.id for r in rows}) == len(rows)
