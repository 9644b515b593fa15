"""Preference rows: a prompt with a chosen and a rejected answer, as texts or as lists of messages.

=========  ==========================================================================================
prompt     text, or a list of messages; left out where both answers are whole conversations
chosen     text, one assistant message in a list, or the whole conversation that ends with it
rejected   the same, for the answer that is worse
=========  ==========================================================================================

Two whole conversations may differ in their last message only: that message is what is preferred.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.example import Example, Part, Turn
from luthier.techniques.data._messages import Wrong, chat, found_value

ANSWERS = ("chosen", "rejected")


def preference(name: str, row: Mapping[str, Any], **rest: Any) -> Example:
    """The example of a row with `chosen` and `rejected`; the chosen answer is its target turn.

    Raises:
        Wrong: an answer or prompt that can't be used, or answers to two different prompts.
    """
    prompt = row.get("prompt")
    if all(isinstance(row[k], str) for k in ANSWERS):
        if not isinstance(prompt, str):
            raise Wrong(f"prompt is {found_value(prompt)}; expected text, as chosen and rejected are text")
        texts = {"prompt": prompt, **{k: row[k] for k in ANSWERS}}
        empty = [k for k, text in texts.items() if not text.strip()]
        if empty:
            raise Wrong(f"{empty[0]} is empty")
        asked: tuple[Turn, ...] = (Turn("user", (Part(prompt, name="prompt"),)),)
        chosen, rejected = (Turn("assistant", (Part(row[k]),), target=True) for k in ANSWERS)
    else:
        asked, chosen, rejected = _spoken(row, prompt)
    if chosen.parts == rejected.parts:
        raise Wrong("chosen and rejected are the same")
    return Example(name, (*asked, chosen), task="preference", rejected=rejected, **rest)


def asked_for(row: Mapping[str, Any]) -> str:
    """What a row is about: the words before the answer."""
    example = preference("", row)
    return "\n".join(t.text for t in example.turns if not t.target)


def _spoken(row: Mapping[str, Any], prompt: Any) -> tuple[tuple[Turn, ...], Turn, Turn]:
    """Prompt, chosen and rejected answer of a row whose answers are lists of messages."""
    for key in ANSWERS:
        if not isinstance(row[key], list) or not row[key]:
            raise Wrong(f"{key} is {found_value(row[key])}; expected text in both answers, or a list of messages in both")
    before = [] if prompt is None else [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(before, list):
        raise Wrong(f"prompt is {found_value(before)}; expected text or a list of messages")
    sides = {}
    for key in ANSWERS:
        *earlier, last = chat("", {"messages": [*before, *row[key]]}, "last").turns
        if last.role != "assistant":
            raise Wrong(f"{key} ends with a message of the role {last.role}; the answer is an assistant's")
        sides[key] = tuple(Turn(t.role, t.parts, extra=t.extra) for t in earlier), last
    asked = sides["chosen"][0]
    if asked != sides["rejected"][0]:
        raise Wrong("chosen and rejected differ before their last message; a preference is between two answers to one prompt")
    if not asked:
        raise Wrong("there is no prompt: give it, or let both answers begin with the messages before them")
    return asked, sides["chosen"][1], sides["rejected"][1]
