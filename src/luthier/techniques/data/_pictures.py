"""Rows with pictures and sounds: LLaVA's `image` beside `conversations`, `image` with `captions` and `boxes` for writers, and
`audio` with a label.

A mark `<image>` in what a human says stands for a picture: the first for the first one, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.identity import hash_file
from luthier.techniques.data._messages import Wrong, chat, found_value

MARK = "<image>"


def files_of(row: Mapping[str, Any]) -> list[str]:
    """The files of a row's pictures. Raises Wrong for anything but a path or a list of paths."""
    given = row["image"]
    listed = given if isinstance(given, list) else [given]
    for value in listed:
        if not isinstance(value, str) or not value.strip():
            raise Wrong(f"image is {found_value(given)}; expected a file's path, or a list of them")
    return listed


def located(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A row whose pictures are named by their place beside the row's file; one source a picture where none is stated."""
    if "audio" in row and "label" in row and isinstance(row["audio"], str):
        there = Path(row["audio"])
        return {**row, "audio": str(there if there.is_absolute() else (folder / there).resolve()),
                "source": row["source"] if row.get("source") is not None else row["audio"]}
    if "image" not in row or not ("conversations" in row or "captions" in row):
        return row
    try:
        files = files_of(row)
    except Wrong:
        return row  # said when the row is checked
    found = [str(path if (path := Path(f)).is_absolute() else (folder / path).resolve()) for f in files]
    named = row["source"] if row.get("source") is not None else " ".join(files)
    return {**row, "image": found if isinstance(row["image"], list) else found[0], "source": named}


def conversation(name: str, row: Mapping[str, Any], learn: Literal["every", "last"], **rest: Any) -> Example:
    """The example of a row with `image` and `conversations`, its marks turned into parts that are pictures.

    Raises:
        Wrong: a message that can't be used, another number of marks than of pictures, a mark in an answer, or a picture that
            is missing or broken.
    """
    files = files_of(row)
    made = chat(name, row, learn, **rest)
    marks = sum(t.text.count(MARK) for t in made.turns)
    if marks != len(files):
        raise Wrong(f"it has {len(files)} pictures and {marks} marks {MARK}; a human's text needs one mark for each picture")
    waiting = list(files)
    turns = []
    for n, turn in enumerate(made.turns):
        if turn.role != "user" and MARK in turn.text:
            raise Wrong(f"conversations[{n}] is from {turn.role} and has a mark {MARK}; only a human shows pictures")
        turns.append(replace(turn, parts=tuple(p for part in turn.parts for p in _parted(part, waiting))))
    _check(files)
    kept = {**rest.get("meta", {}), "pictures": [hash_file(Path(f)) for f in files]}
    return replace(made, turns=tuple(turns), meta=kept)


def scene(name: str, row: Mapping[str, Any], **rest: Any) -> Example:
    """The example of a picture with `captions` and `boxes`: nothing to learn yet, something to write about.

    Raises:
        Wrong: captions that are no texts, a box that is none or reaches beyond 0 to 1, or a broken picture.
    """
    files, captions, boxes = files_of(row), row["captions"], row.get("boxes") or []
    if not isinstance(captions, list) or not captions or not all(isinstance(c, str) and c.strip() for c in captions):
        raise Wrong(f"captions is {found_value(captions)}; expected a list of texts")
    if not isinstance(boxes, list):
        raise Wrong(f"boxes is {found_value(boxes)}; expected a list of {{class, box}}")
    for n, box in enumerate(boxes):
        _check_box(box, f"boxes[{n}]")
    _check(files)
    meta = {**rest.pop("meta", {}), "captions": captions, "boxes": [{"class": b["class"], "box": b["box"]} for b in boxes],
            "pictures": [hash_file(Path(f)) for f in files]}
    return Example(name, (Turn("user", tuple(Part(f, type="image") for f in files)),), task="scene", meta=meta, **rest)


def clip(name: str, row: Mapping[str, Any], **rest: Any) -> Example:
    """The example of a sound with a label. Raises Wrong for a file that is missing or no wav, and for a label that is none."""
    from luthier.engine.sounds import waveform

    if not isinstance(row["audio"], str) or not row["audio"].strip():
        raise Wrong(f"audio is {found_value(row['audio'])}; expected a file's path")
    if row["label"] is None or isinstance(row["label"], (list, dict)) or not str(row["label"]).strip():
        raise Wrong(f"label is {found_value(row['label'])}; expected text or a number")
    try:
        waveform(row["audio"])
    except UserError as error:
        raise Wrong(str(error).rstrip(".")) from None
    meta = {**rest.pop("meta", {}), "clip": hash_file(Path(row["audio"]))}
    return Example(name, (Turn("user", (Part(row["audio"], type="audio"),)),), task="classify", label=str(row["label"]),
                   meta=meta,
                   **rest)


def _parted(part: Part, waiting: list[str]) -> list[Part]:
    """A text with marks as texts and pictures in the order in which they stand."""
    if part.type != "text" or MARK not in part.value:
        return [part]
    found: list[Part] = []
    for n, text in enumerate(part.value.split(MARK)):
        if n:
            found.append(Part(waiting.pop(0), type="image", name=part.name))
        if text.strip():
            found.append(replace(part, value=text.strip()))
    return found


def _check_box(box: Any, where: str) -> None:
    sides = box.get("box") if isinstance(box, dict) else None
    if not isinstance(box, dict) or not isinstance(box.get("class"), str) or not isinstance(sides, list) or len(sides) != 4 \
            or not all(isinstance(s, (int, float)) and not isinstance(s, bool) for s in sides):
        raise Wrong(f"{where} is {found_value(box)}; expected {{\"class\": text, \"box\": [x1, y1, x2, y2]}}")
    left, top, right, bottom = sides
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise Wrong(f"{where} is {sides}; expected shares of the picture from 0 to 1, with x1 < x2 and y1 < y2")


def _check(files: list[str]) -> None:
    from luthier.engine.pictures import opened

    for file in files:
        try:
            opened(file)
        except UserError as error:
            raise Wrong(str(error).rstrip(".")) from None
