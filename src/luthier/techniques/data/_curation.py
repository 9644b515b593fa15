"""What curation steps share: all texts of a row that a model is shown or learns, and the same row with them changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from luthier.core.example import Example, Part, Passage, Turn

Row = Example | Passage
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[^\W\da-z_])|\n{2,}")


def texts(row: Row) -> Iterator[str]:
    """Headings and text of a passage; the text parts, tool arguments and references of an example. Not `meta`."""
    if isinstance(row, Passage):
        yield from (*row.headings, row.text)
        return
    for turn in (*row.turns, *([row.rejected] if row.rejected else [])):
        for part in turn.parts:
            yield from _strings(part.value) if part.type in ("text", "tool_call") else ()
    yield from row.references


def whole(row: Row, without: tuple[str, ...] = ()) -> str:
    """All texts of a row as one, without the parts of these names; of a passage, its text alone."""
    if isinstance(row, Passage):
        return row.text
    return "\n".join(p.value for t in row.turns for p in t.parts if p.type == "text" and p.name not in without)


def with_texts(row: Row, change: Callable[[str], str]) -> Row:
    """The row with every text of `texts` changed."""
    if isinstance(row, Passage):
        return replace(row, headings=tuple(map(change, row.headings)), text=change(row.text))
    return replace(row, turns=tuple(_turn(t, change) for t in row.turns), references=tuple(map(change, row.references)),
                   rejected=_turn(row.rejected, change) if row.rejected else None)


def sentences(text: str) -> list[str]:
    """Pieces that end with a full stop, a question or an exclamation mark before a capital, or with an empty line."""
    return [s.strip() for s in _SENTENCE_END.split(text) if s.strip()]


def _turn(turn: Turn, change: Callable[[str], str]) -> Turn:
    return replace(turn, parts=tuple(_part(p, change) for p in turn.parts))


def _part(part: Part, change: Callable[[str], str]) -> Part:
    return replace(part, value=_changed(part.value, change)) if part.type in ("text", "tool_call") else part


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {k: _changed(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_changed(v, change) for v in value)
    return value
