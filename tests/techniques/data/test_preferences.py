"""Preference rows: what each shape becomes, and what is wrong with those that can't be used."""

from __future__ import annotations

import json

import pytest

from luthier.core.errors import UserError
from luthier.core.example import Example, SourceFile, with_rejected
from luthier.techniques.data.read_jsonl import ReadJsonl

SAID = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Which glue?"}]


def message(text: str) -> dict:
    return {"role": "assistant", "content": text}


def read(tmp_path, make_ctx, *rows: dict) -> list[Example]:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return list(ReadJsonl().apply(iter([SourceFile(path.name, str(path))]), make_ctx("read")))


def test_texts_become_a_prompt_and_two_answers(tmp_path, make_ctx):
    (example,) = read(tmp_path, make_ctx, {"prompt": "Which glue?", "chosen": "Hide glue.", "rejected": "Any.", "score": 3})
    assert (example.task, example.answer, with_rejected(example).answer) == ("preference", "Hide glue.", "Any.")
    assert example.part("prompt") == "Which glue?" and example.meta == {"score": 3}
    assert Example.from_dict(json.loads(json.dumps(example.to_dict()))) == example


@pytest.mark.parametrize("row", [
    {"prompt": SAID, "chosen": [message("Hide glue.")], "rejected": [message("Any.")]},
    {"chosen": [*SAID, message("Hide glue.")], "rejected": [*SAID, message("Any.")]},
])
def test_messages_with_and_without_a_prompt_are_the_same_example(tmp_path, make_ctx, row):
    (example,) = read(tmp_path, make_ctx, row)
    assert [(t.role, t.text, t.target) for t in example.turns] == [
        ("system", "Be short.", False), ("user", "Which glue?", False), ("assistant", "Hide glue.", True)]
    assert example.rejected.text == "Any." and example.rejected.target


def test_an_earlier_answer_of_the_assistant_is_part_of_the_prompt(tmp_path, make_ctx):
    before = [*SAID, message("For what?"), {"role": "user", "content": "A violin."}]
    (example,) = read(tmp_path, make_ctx, {"prompt": before, "chosen": [message("Hide.")], "rejected": [message("Any.")]})
    assert [t.target for t in example.turns] == [False] * 4 + [True]


@pytest.mark.parametrize("row, why", [
    ({"prompt": "p", "chosen": "a", "rejected": "a"}, "row 1: chosen and rejected are the same"),
    ({"prompt": "p", "chosen": " ", "rejected": "a"}, "chosen is empty"),
    ({"chosen": "a", "rejected": "b"}, r"prompt is null .*expected text, as chosen and rejected are text"),
    ({"prompt": "p", "chosen": "a", "rejected": [message("b")]}, "expected text in both answers, or a list of messages"),
    ({"prompt": 3, "chosen": [message("a")], "rejected": [message("b")]}, "prompt is a number"),
    ({"chosen": [message("a")], "rejected": [message("b")]}, "there is no prompt"),
    ({"chosen": [*SAID, message("a")], "rejected": [SAID[1], message("b")]}, "differ before their last message"),
    ({"prompt": "p", "chosen": [message("a"), SAID[1]], "rejected": [message("b")]}, "chosen ends with a message of the role"),
    ({"prompt": "p", "chosen": [{"role": "judge"}], "rejected": [message("b")]}, "has the role"),
    ({"prompt": "p", "chosen": "a"}, "Expected keys: .*preference: chosen, rejected"),
])
def test_what_is_wrong_with_a_pair_is_said(tmp_path, make_ctx, row, why):
    with pytest.raises(UserError, match=why):
        read(tmp_path, make_ctx, row)


def test_pairs_of_one_prompt_share_a_cluster_and_do_not_contradict(tmp_path, make_ctx):
    ctx, said = make_ctx("read"), []
    ctx.log = said.append
    rows = [{"prompt": "Which glue?", "chosen": f"Hide glue {i}.", "rejected": "Any."} for i in range(3)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    found = list(ReadJsonl().apply(iter([SourceFile(path.name, str(path))]), ctx))
    assert len({e.cluster for e in found}) == 1 and not said


def test_both_answers_are_shown_before_training(tmp_path):
    from luthier.pipelines.inspecting import inspect_data

    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "Which glue?", "chosen": "Hide glue.", "rejected": "Any."}) + "\n")
    found = inspect_data(str(path), "pico", 5, 128)
    assert found["about"]["format"] == "preference"
    assert [s["id"] for s in found["shown"]] == ["pairs.jsonl:1, chosen", "pairs.jsonl:1, rejected"]
    assert ["".join(p["text"] for p in s["segments"] if p["learned"]) for s in found["shown"]] == [
        "Hide glue.<eos>", "Any.<eos>"]
