"""synthetic-qa with recorded answers: exact counts per filter, forms, tries, windows, order; and its filters alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Passage, question
from luthier.core.identity import digest
from luthier.techniques.data._questions import SHOTS
from luthier.techniques.data.grounded import Grounded
from luthier.techniques.data.synthetic_qa import SyntheticQA, parse

PUMP = Passage("d:0", "The float valve switches the pump off at 180 litres. A red lamp shows the filter is old.", "d", "s0")
CLAMP = Passage("d:1", "The clamp holds two boards together while the glue between them dries.", "d", "s1")
LAMP = Passage("d:2", "The blue lamp lights up when the tank is empty and the motor has stopped.", "d", "s2")


@pytest.fixture
def write(tmp_path: Path, ctx):
    """`write(passages, {id: [texts]}, **fields)`: what synthetic-qa makes of recorded answers."""
    def run(passages: list[Passage], said: dict[str, list[str]], **fields: Any) -> list[Example | Dropped]:
        path = tmp_path / "said.jsonl"
        path.write_text("".join(json.dumps({"id": k, "text": t}) + "\n" for k, texts in said.items() for t in texts))
        return list(SyntheticQA(**{"teacher": f"replay:{path}", **fields}).apply(iter(passages), ctx))

    return run


SAID = {
    "d:0": ["Q: What switches the pump off at 180 litres?\nA: the float valve\n\n"
            "Q: What switches the PUMP off, at 180 litres?\nA: float valve\n"
            "Q: Who built the first pump in London?\nA: Thomas Savery"],
    "d:1": ["Q: What does this paragraph say about boards?\nA: two boards\n"
            "Q: What does the clamp hold together?\nA: two boards"],
    "d:2": ["I can't help with that.", "", "Here you are:\nQ: What does the blue lamp show?\nA: the tank is empty"],
}


@pytest.mark.oracle(seed=14, clause=1, against="counted by hand")
def test_recorded_answers_give_exactly_known_counts_per_filter(write):
    made = write([PUMP, CLAMP, LAMP], SAID)
    assert [(r.part("question"), r.answer) for r in made if isinstance(r, Example)] == [
        ("What switches the pump off at 180 litres?", "the float valve"),
        ("What does the clamp hold together?", "two boards")]
    assert Counter(r.reason for r in made if isinstance(r, Dropped)) == {
        "unparsable": 1, "repeats a question": 1, "not grounded": 1, "not self-contained": 1}


@pytest.mark.oracle(seed=14, clause=5, against="order of the paragraphs")
def test_rows_come_in_the_order_of_paragraphs_and_pairs(write):
    asked = ["Q: What is part {}{} made of?\nA: pump\n", "Q: What is piece {}{} made of?\nA: pump\n"]
    many = [Passage(f"d:{i}", PUMP.text, "d", f"s{i}") for i in (3, 1, 2)]
    said = {p.id: [a.format(p.id[-1], i) for i, a in enumerate(asked)] for p in many}
    first = write(many, said, per_call="one", per_context=2)
    assert first == write(many, dict(reversed(said.items())), per_call="one", per_context=2)
    assert [r.id for r in first] == [f"synthetic-qa/d:{i}/{n}" for i in (3, 1, 2) for n in (0, 1)]


def test_each_filter_is_a_switch(write):
    assert len([r for r in write([PUMP, CLAMP], SAID, filters=()) if isinstance(r, Example)]) == 5


def test_what_cannot_be_parsed_is_asked_again_and_the_last_words_are_kept(write):
    said = {"d:0": ["no", "never", SAID["d:0"][0]], "d:1": SAID["d:1"]}
    assert not [r for r in write([PUMP, CLAMP], said) if isinstance(r, Dropped) and r.reason == "unparsable"]
    lost = [r for r in write([PUMP, CLAMP], said, retries=1) if isinstance(r, Dropped) and r.reason == "unparsable"]
    assert lost == [Dropped("synthetic-qa/d:0/0", "unparsable", "never")]


def test_more_than_half_unparsable_stops_with_three_samples(write):
    pages = [Passage(f"d:{i}", PUMP.text, "d", f"s{i}") for i in range(5)]
    said = {p.id: [f"Entschuldigung {p.id}"] for p in pages[:4]} | {"d:4": SAID["d:0"]}
    with pytest.raises(UserError, match="4 of 5 answers") as refused:
        write(pages, said)
    assert str(refused.value).count("Entschuldigung") == 3
    half = write(pages, {**said, "d:2": SAID["d:0"], "d:3": SAID["d:0"]})
    assert sum(isinstance(r, Dropped) and r.reason == "unparsable" for r in half) == 2


@pytest.mark.parametrize(("text", "form", "pairs"), [
    ("Q: A b?\nA: c\nQ: D e?\nA: f", "lines", [("A b?", "c"), ("D e?", "f")]),
    ("Q: A b?\nA: c\n\nParagraph: next\nQ: x?\nA: y", "lines", [("A b?", "c")]),
    ("Here you are:\nQ: A b?\nA: c", "lines", []), ("Q: A b?\nA:\n", "lines", []), ("Q: A b?\nQ: c", "lines", []),
    ('[{"q": "A b?", "a": "c"}]', "json", [("A b?", "c")]), ('```json\n[{"q": "A?", "a": "c"}]\n```', "json", [("A?", "c")]),
    ('[{"q": "A b?", "a": ""}]', "json", []), ('{"q": "A b?"}', "json", []), ("[1]", "json", []), ("[", "json", []),
])
def test_the_grammar_is_strict(text, form, pairs):
    assert parse(text, form) == pairs


def test_long_paragraphs_are_cut_at_sentence_ends_and_lose_nothing():
    text = " ".join(f"Sentence number {i} has exactly seven words." for i in range(10))
    pieces = list(SyntheticQA(max_paragraph_words=20).pieces(Passage("d:0", text, "d", "s")))
    assert "".join(p.text for p in pieces) == text and len(pieces) == 5
    assert all(p.text.rstrip().endswith(".") and len(p.text.split()) <= 20 for p in pieces)
    assert [p.id for p in pieces] == [f"d:0~{i}" for i in range(5)]


def test_rows_of_pieces_name_their_paragraph_prompt_and_teacher(write):
    row = write([CLAMP], {"d:1": ["Q: What does the clamp hold together?\nA: two boards"]}, shots=1)[0]
    asked = SyntheticQA(shots=1).prompt(CLAMP, [])
    assert (row.meta["paragraph"], row.meta["prompt"], row.meta["model"]) == ("d:1", digest(asked), "replay:said.jsonl")
    assert row.source == "d:1" and row.cluster == "s1" and asked.count("Paragraph:") == 2
    assert SHOTS[0][0] in asked and SHOTS[1][0] not in asked


def test_missing_recordings_and_strange_teachers_are_refused(write, ctx):
    with pytest.raises(UserError, match="no answer for 1 passages; first: d:2"):
        write([CLAMP, LAMP], {"d:1": SAID["d:1"]})
    with pytest.raises(UserError, match="none of writer"):
        list(SyntheticQA(teacher="gpt").apply(iter([CLAMP]), ctx))
    with pytest.raises(UserError, match=r"(?s)would be sent to 127.0.0.1:9.*consent"):
        list(SyntheticQA(teacher="http://127.0.0.1:9/v1").apply(iter([CLAMP]), ctx))


# --- filters ---------------------------------------------------------------------------------------------------------

def row(asked: str, answer: str, id: str = "q", source: str = "p") -> Example:
    return question(id, asked, answer, passage=PUMP.text, source=source)


@pytest.mark.oracle(seed=14, clause=3, against="definition")
def test_threshold_0_keeps_all(ctx):
    rows = [row("What?", a, str(i)) for i, a in enumerate(["the float valve", "Thomas Savery", "zebra", "?"])]
    assert list(Grounded(threshold=0).apply(iter(rows), ctx)) == rows


@pytest.mark.oracle(seed=14, clause=4, against="every run of words of the passage")
def test_threshold_1_keeps_every_verbatim_answer_and_no_other(ctx):
    said = PUMP.text.split()
    rows = [row("What?", " ".join(said[i:j]), f"{i}-{j}") for i in range(len(said)) for j in range(i + 1, len(said) + 1)]
    assert list(Grounded(threshold=1).apply(iter(rows), ctx)) == rows
    twice = row("What?", "the float float valve")
    assert isinstance(next(Grounded(threshold=1).apply(iter([twice]), ctx)), Dropped)
    assert next(Grounded(threshold=0.75).apply(iter([twice]), ctx)) == twice


def test_a_substring_is_one(ctx):
    kept = list(Grounded(by="substring").apply(iter([row("?", "FLOAT  valve"), row("?", "valve float")]), ctx))
    assert [isinstance(k, Dropped) for k in kept] == [False, True]


def test_lengths(ctx):
    step = build("data_step", "fitting-length:max_question_words=3,max_answer_words=2")
    made = list(step.apply(iter([row("a b c", "d e"), row("a b c d", "e"), row("a", "b c d"), row("?", "a")]), ctx))
    assert [getattr(m, "reason", "") for m in made] == ["", "too long", "too long", "empty"]


def test_eight_words_of_the_evaluation_set_are_found(ctx, tmp_path):
    path = tmp_path / "eval.jsonl"
    path.write_text(json.dumps({"question": "Which of the two lamps is red when it is old?", "answers": ["the left one"]})
                    + "\n" + json.dumps({"question": "Who are you?", "answer": "nobody"}) + "\n")
    step = build("data_step", {"use": "uncontaminated", "against": str(path)})
    asked = ["Say: which of the two lamps is red when, maybe?", "Which of the two lamps is red, they asked?", "Who are you?",
             "Who are you, nobody?"]
    assert [isinstance(m, Dropped) for m in step.apply((row(a, "the left one") for a in asked), ctx)] == [
        True, False, True, False]
    with pytest.raises(UserError, match="does not exist"):
        list(build("data_step", "uncontaminated:against=none.jsonl").apply(iter(()), ctx))


def test_questions_of_different_passages_may_repeat(ctx):
    rows = [row("What switches the pump off?", "a", "1", "p"), row("What switches the pump off?", "a", "2", "r"),
            row("What switches the pump off", "a", "3", "p")]
    step = build("data_step", "distinct:within=passage")
    assert [m.id for m in step.apply(iter(rows), ctx) if isinstance(m, Example)] == ["1", "2"]
    assert [m.id for m in build("data_step", "distinct").apply(iter(rows), ctx) if isinstance(m, Example)] == ["1"]


class Near:
    """Embeds by hand: cosines of 0.96, 0.94 and 0 with the first."""

    def embed(self, model: Any, texts: list[str]) -> Any:
        import numpy as np

        return np.array([[1, 0], [0.96, 0.28], [0.94, -0.3411744], [0, 1]])


def test_near_embeddings_are_one_question(ctx):
    ctx.engine, ctx.roles = Near(), {"encoder": None}
    rows = [row(f"Question {i}?", "a", str(i)) for i in range(4)]
    step = build("data_step", "distinct:by=embedding,threshold=0.95,within=passage")
    assert [m.id for m in step.apply(iter(rows), ctx) if isinstance(m, Example)] == ["0", "2", "3"]


class Reader:
    """Reads as it is told."""

    def generate(self, model: Any, prompts: list[Any], decoder: Any, **options: Any) -> list[Any]:
        from luthier.engine.generation import Generated

        return [Generated(t, 1, True, 1) for t in ("float valve", "a lamp of the tank")]


def test_the_round_trip_keeps_what_a_reader_answers_alike(ctx, engine, pico):
    ctx.engine, ctx.roles = Reader(), {"writer": engine.load(pico)}
    rows = [row("What switches it?", "the float valve", "0"), row("What is red?", "the float valve", "1")]
    made = list(build("data_step", "round-trip:threshold=0.8").apply(iter(rows), ctx))
    assert made[0] == rows[0]  # F1 = 2*2/(2+3) = 0.8
    assert made[1].reason == "answered otherwise" and made[1].detail.startswith("F1 0.")
