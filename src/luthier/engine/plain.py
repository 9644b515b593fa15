"""The plain template, for models without a chat template and rows that are no chats.

Questions read::

    Passage: {passage}          (once for each passage)
    Question: {question}
    Answer: {answer}<eos>

and conversations::

    {system text}

    Tools: {their schemas as a JSON list}

    User: {text}
    Assistant: {text}<eos>

    User: {text}
    Assistant: {text}
    Call {tool}: {arguments as JSON}<eos>

    Tool {tool}: {what it gave}
    Assistant: {text}<eos>

Every assistant turn ends with the end token, learned or not, so that each shows what it is to learn. Prompts and
completions are rendered as they are; nothing is added but the end token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from luthier.core.errors import UserError
from luthier.core.example import Example, Turn

CUES: Mapping[str, str] = {"passage": "Passage: ", "question": "Question: "}
ANSWER_CUE = "Answer:"
CHAT_CUES: Mapping[str, str] = {"user": "User: ", "assistant": "Assistant:", "tools": "Tools: "}


class Segment(NamedTuple):
    """Text that is tokenised by itself; `stop` says that the end token follows it."""

    text: str
    learned: bool = False
    stop: bool = False


def segments(example: Example) -> list[Segment]:
    """Segments of an example. Unlearned neighbours are joined into one segment."""
    for turn in example.turns:
        if turn.spans:
            raise UserError(f"Row {example.id} narrows what is learned to spans; the plain template learns whole turns.")
    return _conversation(example) if example.task == "chat" else _rows(example)


def _rows(example: Example) -> list[Segment]:
    found: list[Segment] = []
    asked = False
    for turn in example.turns:
        if turn.target or turn.role == "assistant":
            found.append(Segment(f" {turn.text}" if asked else turn.text, turn.target, True))
            continue
        text, asked = _asked(turn)
        if found and not found[-1].stop:
            found[-1] = Segment(found[-1].text + text)
        else:
            found.append(Segment(f"\n\n{text}" if found else text))
    return found


def _asked(turn: Turn) -> tuple[str, bool]:
    named = [p for p in turn.parts if p.type == "text" and p.name in CUES]
    if not named:
        return turn.text, False
    lines = [CUES[p.name] + p.value for p in named]
    asked = any(p.name == "question" for p in named)
    return "\n".join([*lines, ANSWER_CUE] if asked else lines), asked


def _conversation(example: Example) -> list[Segment]:
    """A chat up to its last learned turn, or all of it and the cue for the next turn where nothing is learned."""
    last = max((n for n, t in enumerate(example.turns) if t.target), default=len(example.turns))
    found: list[Segment] = []
    blocks: list[str] = []
    tools = [CHAT_CUES["tools"] + json.dumps(list(example.tools), ensure_ascii=False)] if example.tools else []

    def ask() -> Segment:
        text = "\n\n".join(blocks)
        return Segment(("\n\n" if found else "") + (f"{text}\n" if text else "") + CHAT_CUES["assistant"])

    for turn in example.turns[:last + 1]:
        if turn.role != "system":
            blocks, tools = [*blocks, *tools], []
        if turn.role == "assistant":
            found += [ask(), Segment(f" {said(turn)}", turn.target, True)]
            blocks = []
        else:
            name = str(turn.extra.get("name") or "")
            cue = {"system": "", "user": CHAT_CUES["user"], "tool": f"Tool {name}: " if name else "Tool: "}[turn.role]
            blocks = [*blocks, cue + turn.text]
    return [*found, ask()] if last == len(example.turns) else found


def said(turn: Turn) -> str:
    """What an assistant says: its text, then a line for each call."""
    calls = [f"Call {c['name']}: {json.dumps(c['arguments'], ensure_ascii=False)}" for c in turn.calls]
    return "\n".join([*([turn.text] if turn.text else []), *calls])
