"""Rows with pictures: LLaVA's layout read, and everything that can be wrong with a picture, a mark or a box."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from luthier.core.errors import UserError
from luthier.core.example import Dropped, SourceFile
from luthier.core.identity import hash_file
from luthier.techniques.data.read_jsonl import ReadJsonl
from luthier.techniques.data.visual_instructions import VisualInstructions

TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A bridge."}]


@pytest.fixture
def one(tmp_path, ctx):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "b.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")

    def read(*rows, **fields):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        return list(ReadJsonl(**fields).apply(iter([SourceFile("data.jsonl", str(path))]), ctx))

    return read


def test_a_row_of_llava_has_its_picture_where_the_mark_stands(one, tmp_path):
    after = [{"from": "human", "value": "What is it?\n<image>"}, TALK[1], {"from": "human", "value": "Of wood?"}, TALK[1]]
    first, second, two = one({"id": "1", "image": "a.png", "conversations": TALK},
                             {"id": "2", "image": "b.png", "conversations": after},
                             {"id": "3", "image": ["a.png", "b.png"], "conversations":
                                 [{"from": "human", "value": "<image> and <image>: alike?"}, TALK[1]]})
    assert [(p.type, p.value) for p in first.turns[0].parts] == [("image", str(tmp_path / "a.png")), ("text", "What is it?")]
    assert [p.type for p in second.turns[0].parts] == ["text", "image"] and len(second.turns) == 4
    assert [(p.type, p.value) for p in two.turns[0].parts] == [
        ("image", str(tmp_path / "a.png")), ("text", "and"), ("image", str(tmp_path / "b.png")), ("text", ": alike?")]
    assert [t.target for t in second.turns] == [False, True, False, True] and first.task == "chat" and first.spoken
    assert first.source == "a.png" and first.cluster == "a.png", "rows about one picture stay together"
    assert two.meta["pictures"] == [hash_file(tmp_path / n) for n in ("a.png", "b.png")]


@pytest.mark.parametrize(("row", "said"), [
    ({"id": "x", "image": "a.png", "conversations": [{"from": "human", "value": "What?"}, TALK[1]]},
     "it has 1 pictures and 0 marks <image>"),
    ({"id": "x", "image": "a.png", "conversations": [{"from": "human", "value": "<image> <image>?"}, TALK[1]]},
     "it has 1 pictures and 2 marks <image>"),
    ({"id": "x", "image": "a.png", "conversations": [{"from": "human", "value": "Show me"},
                                                     {"from": "gpt", "value": "<image>"}]},
     "conversations[1] is from assistant and has a mark <image>; only a human shows pictures"),
    ({"id": "x", "image": "gone.png", "conversations": TALK}, "There is no picture"),
    ({"id": "x", "image": "broken.png", "conversations": TALK}, "broken.png can't be read as a picture"),
    ({"id": "x", "image": 3, "conversations": TALK}, "image is a number (3); expected a file's path"),
    ({"id": "x", "image": "a.png", "captions": "a bridge"}, "captions is text"),
    ({"id": "x", "image": "a.png", "captions": ["a"], "boxes": [{"class": "bridge", "box": [0, 0, 1.2, 1]}]},
     "boxes[0] is [0, 0, 1.2, 1]; expected shares of the picture from 0 to 1"),
    ({"id": "x", "image": "a.png", "captions": ["a"], "boxes": [{"class": "bridge", "box": [0.5, 0, 0.5, 1]}]}, "with x1 < x2"),
    ({"id": "x", "image": "a.png", "captions": ["a"], "boxes": [{"box": [0, 0, 1, 1]}]}, "boxes[0] is an object"),
])
def test_bad_rows_are_refused_by_number_or_left_out(one, row, said):
    with pytest.raises(UserError) as caught:
        one(row)
    assert "row 1" in str(caught.value) and said in str(caught.value)
    good = {"id": "g", "image": "a.png", **({"conversations": TALK} if "conversations" in row else {"captions": ["a"]})}
    kept, = [r for r in one(row, good, bad_rows="drop") if not isinstance(r, Dropped)]
    assert kept.id == "g"


def test_a_scene_becomes_instructions_with_a_picture_before_or_after_the_question(one, ctx):
    boxes = [{"class": "bridge", "box": [0.0, 0.0, 0.2, 0.2]}, {"class": "peg", "box": [0.7, 0.7, 0.9, 0.9]}]
    rows = one(*({"id": f"s{n}", "image": "a.png", "captions": ["a bridge and a peg"], "boxes": boxes} for n in range(12)))
    made = list(VisualInstructions(kinds=("caption", "description")).apply(iter(rows), ctx))
    assert len(made) == 24 and {m.turns[1].text for m in made if m.meta["kind"] == "caption"} == {"a bridge and a peg"}
    assert {m.turns[1].text for m in made if m.meta["kind"] == "description"} == {
        "The picture shows a bridge in the top left and a peg in the bottom right."}
    assert {m.turns[0].parts[0].type for m in made} == {"image", "text"}, "both orders are drawn"
    (dropped,) = VisualInstructions().apply(iter([rows[0].__class__("none")]), ctx)
    assert dropped.reason == "no scene"
