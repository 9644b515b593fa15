"""Formats of card 126 from documents: paragraphs, keywords, cloze, recurring spans; nothing is lost, answers are verbatim."""

from __future__ import annotations

import math

import pytest

from luthier.core.component import build
from luthier.core.example import Document, Dropped, Example, Passage, Section
from luthier.techniques.data.chunk_by_structure import ChunkByStructure

TEXTS = [
    "ACME manual\nThe float valve switches the pump off at 180 litres.\n\nThe red lamp shows an old filter in tanks.\nPage 1",
    "ACME manual\nThe Clamp of Smith & Co. holds two boards together while the glue dries.\nPage 2",
    "ACME manual\nThe pump rests while the float valve is closed, and then a bell rings twice.\nSetup ........ 12\nPage 3",
]
PAGES = [Passage(f"d:{i}", text, "d", f"s{i}", ("Guide", f"Part {i}")) for i, text in enumerate(TEXTS)]


def made(spec: str, ctx, pages=PAGES) -> list[Example | Dropped]:
    return list(build("data_step", spec).apply(iter(pages), ctx))


@pytest.mark.oracle(seed=126, clause=1, against="the lines of the text itself")
def test_chunks_joined_reproduce_the_text_minus_counted_boilerplate(ctx):
    rows = made("paragraphs:titles=false", ctx)
    for page in PAGES:
        left = {int(r.id.rpartition("-")[2]): r.detail for r in rows
                if isinstance(r, Dropped) and r.id.startswith(f"paragraphs/{page.id}/line-")}
        (kept,) = (r.answer for r in rows if isinstance(r, Example) and r.source == page.id)
        rest = iter(kept.split("\n"))
        assert "\n".join(left[i] if i in left else next(rest) for i in range(len(page.text.split("\n")))) == page.text
        assert next(rest, None) is None
    gone = [r.detail for r in rows if isinstance(r, Dropped)]
    assert gone == ["ACME manual", "ACME manual", "ACME manual", "Setup ........ 12"]
    assert all("ACME" not in r.answer for r in rows if isinstance(r, Example))


@pytest.mark.oracle(seed=126, clause=1, against="the document itself")
def test_passages_of_the_chunker_joined_are_the_document(ctx):
    text = "\n\n".join(f"Paragraph {i} says a thing. It says it twice, for safety." for i in range(40))
    passages = list(ChunkByStructure(max_tokens=60).apply(iter([Document("d", "t", (Section(("A",), text),))]), ctx))
    rows = [r.answer for r in made("paragraphs:titles=false", ctx, passages) if isinstance(r, Example)]
    assert len(rows) > 5 and "\n\n".join(rows) == text


def test_titles_stand_before_the_text(ctx):
    assert next(r for r in made("paragraphs", ctx) if isinstance(r, Example)).answer.startswith("Guide / Part 0\nThe float")


@pytest.mark.oracle(seed=126, clause=2, against="substring of the passage")
@pytest.mark.parametrize("spec", ["headings", "cloze", "recurring-spans"])
def test_every_answer_of_the_rules_is_a_substring_of_its_chunk(spec, ctx):
    defined = Passage("d:9", "A valve is a part that stops water. The float valve is new, and the red lamp is on.", "d", "s9",
                      ("Guide", "Valves"))
    rows = [r for r in made(spec, ctx, [*PAGES, defined]) if isinstance(r, Example)]
    assert rows and all(r.answer in r.part("passage") for r in rows)


def test_a_gap_filled_with_its_answer_is_the_sentence(ctx):
    rows = [r for r in made("cloze", ctx) if isinstance(r, Example)]
    assert rows[0].answer == "180 litres"
    for r in rows:
        sentence = r.part("question").removeprefix('What fills the gap: "').removesuffix('"?')
        assert sentence.count("____") == 1 and sentence.replace("____", r.answer) in r.part("passage")


def test_a_recurring_span_is_asked_by_one_passage_and_shown_in_another(ctx):
    texts = ["The float valve switches the pump off.", "Nothing but a float valve stops the water."]
    pages = [Passage(f"d:{i}", text, "d", f"s{i}") for i, text in enumerate(texts)]
    (row,) = made("recurring-spans", ctx, pages)
    assert (row.part("question"), row.answer) == ('What fills the gap: "The ____ switches the pump off."?', "float valve")
    assert row.source == "d:1" and row.part("passage") == texts[1]


@pytest.mark.oracle(seed=126, clause=1, against="TF-IDF worked by hand, and the text itself")
def test_keywords_are_those_of_the_largest_tf_idf(ctx):
    texts = ["pump pump valve lamp the the the old red big new", "valve lamp lamp clamp the the old red big new"]
    pages = [Passage(f"d:{i}", t, "d", f"s{i}", ("G",)) for i, t in enumerate(texts)]
    rows = made("keywords-paragraph:keywords=3", ctx, pages)
    # idf is log(3/2) for words of one passage, log(3/3) = 0 for those of both.
    assert math.log(3 / 3) == 0
    assert rows[0].turns[0].text == "Section: G\nKeywords: pump\nParagraph:"
    assert rows[1].turns[0].text == "Section: G\nKeywords: clamp\nParagraph:"
    third = Passage("d:2", "nothing of that sort stands here at all today", "d", "s2")
    first = made("keywords-paragraph:keywords=3", ctx, [*pages, third])[0]
    # pump 2·log(4/2) > valve = lamp = old = … = log(4/3), in order of place.
    assert "Keywords: pump, valve, lamp\n" in first.turns[0].text and first.answer == f" {texts[0]}"


@pytest.mark.oracle(seed=126, clause=2, against="substring of the passage")
def test_enterprise_writes_every_format_and_says_when_rules_write_the_questions(ctx, log):
    pages = [Passage("d:0", "A valve is a part that stops water. It is made of brass and lasts long.", "d", "s0", ("Valves",))]
    rows = [r for r in made("enterprise", ctx, pages) if isinstance(r, Example)]
    assert {r.meta["generator"] for r in rows} == {"paragraphs", "headings", "keywords-paragraph"}
    assert [line for line in log if "few-shot needs a writer" in line and "headings writes" in line]
    asked = [r for r in rows if r.meta["generator"] == "headings"]
    assert asked and all(r.answer in r.part("passage") for r in asked)
