"""Row shapes: each format by hand, the rows of the documentation, and every way in which a span or a choice can be wrong."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from luthier.core.errors import UserError
from luthier.core.example import SourceFile
from luthier.techniques.data._formats import FORMATS
from luthier.techniques.data._spans import ABSTENTION, span_problems, spans
from luthier.techniques.data.read_jsonl import ReadJsonl

ROWS = Path(__file__).parents[3] / "docs" / "rows.md"
CONTEXT = "Hide glue is warmed. Fish glue is not."


@pytest.fixture
def one(tmp_path, ctx):
    def read(*rows, **fields):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        return list(ReadJsonl(**fields).apply(iter([SourceFile("data.jsonl", str(path))]), ctx))

    return read


def documented() -> dict[str, dict]:
    block = ROWS.read_text(encoding="utf-8").split("```jsonl\n")[1].split("```")[0]
    return {row["format"]: row["row"] for row in map(json.loads, block.splitlines())}


@pytest.mark.parametrize("name", list(FORMATS))
def test_the_documented_row_of_each_format_is_read_as_such(one, tmp_path, name):
    row = documented()[name]
    if "image" in row:
        Image.new("RGB", (4, 4)).save(tmp_path / row["image"])
    if "audio" in row:
        with wave.open(str(tmp_path / row["audio"]), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(bytes(2000))
    (example,) = one(row)
    found = ReadJsonl().validate_file(SourceFile("data.jsonl", str(tmp_path / "data.jsonl")))
    assert found.format == name and not found.unused
    assert next(n for n, f in FORMATS.items() if f.fits(row)) == name
    table = next(line for line in ROWS.read_text().splitlines() if line.startswith(f"| {name} |"))
    assert table.rstrip("| ").endswith(FORMATS[name].learned_by or "-")
    assert example.turns and example.id == "data.jsonl:1"


def squad(start=0, text="Hide glue", **more):
    return {"context": CONTEXT, "question": "What is warmed?", "answers": {"text": [text], "answer_start": [start]}, **more}


def test_spans_by_hand(one):
    listed = {**squad(), "answers": [{"text": "Hide glue", "answer_start": 0}, {"text": "glue", "answer_start": 5}]}
    rows = one(squad(), listed, {**squad(), "answers": {"text": [], "answer_start": []}},
               {**squad(), "answers": [], "is_impossible": True})
    assert [(r.answer, r.references, r.meta["spans"]) for r in rows] == [
        ("Hide glue", (), [[0, 9]]), ("Hide glue", ("glue",), [[0, 9], [5, 9]]), (ABSTENTION, (), []), (ABSTENTION, (), [])]
    assert {r.part("passage") for r in rows} == {CONTEXT} and len({r.cluster for r in rows}) == 1


@pytest.mark.parametrize(("row", "said"), [
    (squad(1), "row 1: answers.text[0]: the context at answer_start 1 reads 'ide glue ', not 'Hide glue'; it stands at 0"),
    (squad(0, "Bone glue"), "the context does not hold it"),
    (squad(-9), "answer_start is a number (-9); expected a whole number from 0"),
    (squad(0, ""), "expected text that is not empty"),
    ({**squad(), "answers": {"text": ["Hide glue"]}}, "two lists of equal length"),
    ({**squad(), "question": " "}, "question is empty"),
    (squad(is_impossible=True), "is_impossible is true, but answers holds answers"),
])
def test_wrong_spans(one, row, said):
    with pytest.raises(UserError) as caught:
        one(row)
    assert said in str(caught.value)


@given(st.text(min_size=1, max_size=40), st.data())
@settings(max_examples=80, deadline=None)
def test_exactly_the_true_places_are_accepted(context, data):
    start = data.draw(st.integers(0, len(context) - 1))
    text = context[start:data.draw(st.integers(start + 1, len(context)))]
    claimed = data.draw(st.integers(0, len(context)))
    row = {"context": context, "question": "Q?", "answers": {"text": [text], "answer_start": [claimed]}}
    right = bool(context.strip()) and bool(text.strip()) and context.startswith(text, claimed)
    assert (span_problems(row, {}) == []) == right
    if right:
        (place,) = spans("x", row, {}, {"meta": {}}).meta["spans"]
        assert context[slice(*place)] == text


CHOICES = ["oak", "ash", "elm"]


@pytest.mark.parametrize(("row", "right"), [
    ({"choices": CHOICES, "answer": "B"}, 1), ({"choices": CHOICES, "answer": "(b)"}, 1),
    ({"choices": CHOICES, "answer": 2}, 2),
    ({"options": CHOICES, "answer": "elm"}, 2), ({"endings": CHOICES, "label": "0"}, 0),
    ({"choices": {"text": CHOICES, "label": ["1", "2", "3"]}, "answerKey": "3"}, 2),
    ({"choices": {"text": CHOICES, "label": ["A", "B", "C"]}, "answerKey": "C"}, 2),
    ({"choices": [{"text": t, "label": n} for t, n in zip(CHOICES, "XYZ", strict=True)], "answer": "Z"}, 2),
    ({"options": dict(zip("ABC", CHOICES, strict=True)), "answer": "A"}, 0),
    ({"A": "oak", "B": "ash", "C": "elm", "answer": "B"}, 1), ({"choice1": "oak", "choice2": "ash", "label": 1}, 1),
])
def test_choices_in_every_layout(one, row, right):
    (example,) = one({"question": "Which?", **row})
    assert example.answer == CHOICES[right] and example.label == right
    assert example.meta["options"] == CHOICES[:len(example.meta["options"])]
    assert example.part("question").splitlines()[:3] == ["Which?", "A. oak", "B. ash"]


def test_copa_asks_in_words(one):
    (example,) = one({"premise": "It rained.", "choice1": "a", "choice2": "b", "question": "effect", "label": 0})
    assert example.part("question").startswith("It rained. What happened as a result?\nA. a")


@pytest.mark.parametrize(("row", "said"), [
    ({"choices": CHOICES, "answer": "D"}, 'answer is text ("D"); legal: A, B, C; 0 to 2; or the text of one of choices'),
    ({"choices": CHOICES, "answer": 3}, "answer is a number (3)"), ({"choices": CHOICES, "answer": -1}, "(-1)"),
    ({"choices": ["oak"], "answer": "A"}, "1 choices; expected 2 to 26"),
    ({"choices": ["oak", ""], "answer": "A"}, "expected texts that are not empty"),
    ({"choices": {"text": CHOICES, "label": ["A"]}, "answer": "A"}, "3 texts and 1 labels"),
    ({"choices": "oak", "answer": "A"}, "expected a list of texts"),
])
def test_wrong_choices(one, row, said):
    with pytest.raises(UserError) as caught:
        one({"question": "Which?", **row})
    assert said in str(caught.value)


def test_alpaca_pairs_scores_and_tags(one):
    (asked,) = one({"instruction": "Add.", "input": "1 and 2", "output": "3"})
    assert [t.text for t in asked.turns] == ["Add.\n\n1 and 2", "3"] and asked.task == "chat" and asked.spoken
    (bare,) = one({"instruction": "Add.", "input": "", "context": "to 1", "response": "3"})
    assert bare.turns[0].text == "Add.\n\nto 1"
    (pair,) = one({"premise": "a", "hypothesis": "b", "label": 2})
    assert (pair.task, pair.label, pair.turns[0].text) == ("classify", "2", "a\nb")
    (score,) = one({"text1": "a", "text2": "b", "score": "2.5"})
    assert (score.task, score.label) == ("score", 2.5)
    (tags,) = one({"tokens": ["a", "b"], "ner_tags": [0, 3]})
    assert tags.turns[0].text == "a b" and tags.turns[1].parts[0].value == ["0", "3"] and tags.answer == ""


@pytest.mark.parametrize(("row", "said"), [
    ({"tokens": ["a"], "tags": ["O", "O"]}, "1 tokens and 2 tags"), ({"tokens": [], "tags": []}, "tokens is empty"),
    ({"tokens": ["a", 1], "tags": ["O", "O"]}, "tokens[1] is a number (1)"),
    ({"tokens": "a", "tags": ["O"]}, "expected a list"),
    ({"sentence1": "a", "sentence2": "b", "score": "high"}, 'score is text ("high"); expected a number'),
    ({"sentence1": "a", "sentence2": " ", "label": 1}, "sentence2 is empty"),
    ({"instruction": "a", "output": ""}, "output is empty"),
])
def test_wrong_rows(one, row, said):
    with pytest.raises(UserError) as caught:
        one(row)
    assert said in str(caught.value)


def test_columns(one):
    (row,) = one({"q": "Q?", "a": "A", "answer": "not this"}, columns={"question": "q", "answer": "a"})
    assert (row.part("question"), row.answer, row.meta) == ("Q?", "A", {"answer (column)": "not this"})
    with pytest.raises(UserError, match=r"no column 'qu' for question; found: q, a\. "):
        one({"q": "Q?", "a": "A"}, columns={"question": "qu", "answer": "a"})
    with pytest.raises(UserError, match="no format reads the key 'quest'"):
        one({"q": "Q?", "a": "A"}, columns={"quest": "q"})
    with pytest.raises(UserError, match="Nearest: text-label, but it has no text"):
        one({"sentence": "S", "label": 1})


def test_bad_rows_may_be_dropped(one):
    good = {"question": "Q?", "answer": "A", "id": "1"}
    rows = one(good, {"question": "R?", "answer": ""}, {**good, "answer": "B"}, bad_rows="drop")
    assert [(type(r).__name__, r.id) for r in rows] == [
        ("Dropped", "data.jsonl:2"), ("Dropped", "data.jsonl:3"), ("Example", "1")]
    assert "answer is empty" in rows[0].detail and "already that of row 1" in rows[1].detail
    with pytest.raises(UserError, match="no rows that can be used"):
        one({"question": "", "answer": ""}, bad_rows="drop")


def test_longer_files_get_clusters_of_equal_texts(one, log):
    words = " ".join(f"w{i}" for i in range(60))
    rows = [{"text": words, "label": "a"}, {"text": f"{words} more", "label": "a"}, {"text": words.upper(), "label": "b"}]
    near, far = one(*rows), one(*rows, near_rows=2)
    assert len({r.cluster for r in near}) == 1
    assert far[0].cluster == far[2].cluster != far[1].cluster and "above near_rows=2" in log[-1]
