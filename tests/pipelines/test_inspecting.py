"""inspecting: what is shown is decoded from the very ids that would be trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import UserError
from luthier.pipelines.inspecting import inspect_data

QA = [{"question": "What is a clamp?", "answer": "a rail with jaws", "passage": "A clamp is a rail with jaws."},
      {"question": "What is glue?", "answer": "a paste"}]
LABELS = [{"text": f"text {i}", "label": "ab"[i % 3 == 0]} for i in range(9)]


@pytest.fixture
def look(tmp_path):
    """`look(rows, base, shown, max_tokens)`: what is said of a file with these rows."""
    def run(rows: list[dict[str, Any]], base: str = "pico", shown: int = 3, max_tokens: int = 256) -> dict[str, Any]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return inspect_data(str(path), base, shown, max_tokens)

    return run


def test_segments_of_a_question_are_its_prompt_and_its_answer_with_the_stop_token(look):
    found = look(QA)
    one, two = found["shown"]
    assert one["segments"] == [
        {"text": "<bos>Passage: A clamp is a rail with jaws.\nQuestion: What is a clamp?\nAnswer:", "learned": False},
        {"text": " a rail with jaws<eos>", "learned": True}]
    assert two["segments"] == [{"text": "<bos>Question: What is glue?\nAnswer:", "learned": False},
                               {"text": " a paste<eos>", "learned": True}]
    assert (found["about"]["format"], found["about"]["rows"], found["about"]["base"]) == ("question-answer", 2, "pico")


def test_tokens_are_counted_as_they_would_be_trained_on(look, engine, pico):
    tokenizer = engine.tokenizer(pico)
    found = look(QA)
    for row in found["shown"]:
        prompt, answer = (len(tokenizer(s["text"], add_special_tokens=False)["input_ids"]) for s in row["segments"])
        assert (row["tokens"], row["learned"]) == (prompt + answer, answer)
    assert found["about"]["tokens a row"] == f"{found['shown'][1]['tokens']} to {found['shown'][0]['tokens']}"


def test_an_encoder_decoder_learns_the_answer_alone(look):
    (row,) = look(QA[1:], base="pico-encoder-decoder")["shown"]
    assert row["segments"] == [{"text": "Question: What is glue?\nAnswer:<pad>", "learned": False},
                               {"text": " a paste<eos>", "learned": True}]


def test_prompt_and_completion_are_shown_as_they_are(look):
    (row,) = look([{"prompt": "One, two,", "completion": " three"}])["shown"]
    assert row["segments"] == [{"text": "<bos>One, two,", "learned": False}, {"text": " three<eos>", "learned": True}]


def test_labels_are_counted(look):
    found = look(LABELS, base="pico-encoder", shown=2)
    assert found["about"]["labels"] == {"b": 3, "a": 6} and found["about"]["format"] == "text-label"
    assert [r["text"] for r in found["shown"]] == ["text 0\n-> label: b", "text 1\n-> label: a"]
    assert found["about"]["left out at max_tokens"] == "none"


def test_rows_that_do_not_fit_are_counted_and_said(look):
    found = look([*QA[1:], {"question": "Why " * 99 + "?", "answer": "so"}], max_tokens=40)
    assert found["about"]["left out at max_tokens"] == "1 (too long)"
    assert found["shown"][1]["text"].startswith("left out: too long, ")
    alone = look([{"question": "Why " * 99 + "?", "answer": "so"}], max_tokens=40)
    assert alone["about"]["tokens a row"] == "none fits"


def test_as_many_rows_as_wanted(look):
    assert [len(look(LABELS, base="pico-encoder", shown=n)["shown"]) for n in (1, 4, 99)] == [1, 4, 9]


def test_what_the_reader_says_is_shown(look):
    assert "colour (1)" in look([{**QA[1], "colour": "red"}])["about"]["said while reading"]
    assert "said while reading" not in look(QA)["about"]


def test_bad_rows_are_refused(look):
    with pytest.raises(UserError, match="row 2|line 2"):
        look([QA[1], {"question": "Who?"}])


def test_documents_are_counted_in_sections_and_passages(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in ("clamps", "glue"):
        (folder / f"{name}.md").write_text(f"# Manual\n\n## Of {name}\n\nThe {name} are told of here.\n")
    (folder / "empty.md").write_text("")
    found = inspect_data(str(folder), None, 1, 256)
    about = found["about"]
    assert (about["kind"], about["documents"], about["sections"], about["passages"]) == ("documents", 2, 2, 2)
    assert about["left out"] == "1 empty" and about["counted by"] == "words and signs"
    (shown,) = found["shown"]
    assert shown["text"] == f"Manual / Of clamps ({about['tokens'] // 2} tokens)\nThe clamps are told of here."
    assert inspect_data(str(folder), "pico", 1, 256)["about"]["tokens"] > about["tokens"], "pico cuts words in pieces"
    assert inspect_data(str(Path(folder, "glue.md")), None, 3, 256)["about"]["documents"] == 1


def test_a_data_step_lists_what_it_would_leave_out_and_changes_nothing(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*QA, {"question": "What is damn glue?", "answer": "a paste"}]))
    found = inspect_data(str(path), "pico", 3, 256, "auto", ["profanity:level=mild", "profanity:further=[clamp],most=1"])
    assert found["about"]["rows flagged by profanity"] == 2 and found["about"]["rows"] == 3
    assert [(f["step"], f["reason"], f["detail"]) for f in found["flagged"]] == [
        ("profanity", "profanity", "1 mild"), ("profanity", "profanity", "2 further")]
    with pytest.raises(UserError, match="only steps that look at rows without a model can be asked here"):
        inspect_data(str(path), "pico", 3, 256, "auto", ["few-shot"])
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# Clamp\n\nA clamp is a rail.\n")
    with pytest.raises(UserError, match="--data-step looks at rows; .* holds documents"):
        inspect_data(str(tmp_path / "docs"), None, 3, 256, "auto", ["profanity"])
