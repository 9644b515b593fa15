"""The formats of a user's rows, as a table: one entry a format.

=================  ======================================================  =============================
format             keys it needs                                           keys it may have
=================  ======================================================  =============================
question-answer    question, answer (text or list) or answers (list)       passage or context
prompt-completion  prompt, completion
text-label         text, label
messages           messages: [{role, content, tool_calls}, …]              tools
conversations      conversations: [{from, value}, …]                       tools, system
raw-text           text
=================  ======================================================  =============================

A row belongs to the first format whose needs it meets. Each may have `id` and `source`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.example import Example, Part, Turn, question
from luthier.techniques.data._messages import Wrong, chat, found_value, said_by_user

Row = Mapping[str, Any]
# Make an example of a checked row: id, row, the reader's options, what every example gets (source, cluster, meta).
Make = Callable[[str, Row, Mapping[str, Any], dict[str, Any]], Example]


@dataclass(frozen=True)
class Format:
    """One format: a row needs one key of each group in `needs`; `may` lists further keys that are read.

    `task` names the examples' task. `problems` says what is wrong with the values of a row whose keys are there.
    `subject` is what a row is about: nearly equal subjects must not be parted by a split.
    """

    task: str
    needs: tuple[tuple[str, ...], ...]
    make: Make
    problems: Callable[[Row, Mapping[str, Any]], list[str]]
    subject: Callable[[Row], str]
    may: tuple[str, ...] = ()

    def fits(self, row: Row) -> bool:
        """Whether every key that is needed is there."""
        return all(any(k in row for k in group) for group in self.needs)

    def missing(self, row: Row) -> list[str]:
        """What is needed and not there."""
        return [" or ".join(group) for group in self.needs if not any(k in row for k in group)]

    @property
    def used(self) -> frozenset[str]:
        """Every key that is read; others are kept in `meta`."""
        return frozenset({k for group in self.needs for k in group} | {*self.may, "id", "source"})


@dataclass
class Summary:
    """What a look at every line of a file found."""

    format: str = ""
    rows: int = 0
    unused: dict[str, int] = field(default_factory=dict)
    answers: dict[bytes, bytes] = field(default_factory=dict)  # the first answer to each question, as hashes
    conflicts: int = 0
    problems: list[str] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)


def _texts(*keys: str) -> Callable[[Row, Mapping[str, Any]], list[str]]:
    """Problems of keys that must hold text."""
    return lambda row, options: [p for key in keys for p in _no_text(key, row[key])]


def _no_text(key: str, value: Any, wanted: str = "text") -> list[str]:
    if not isinstance(value, str):
        return [f"{key} holds {found_value(value)}; expected {wanted}"]
    return [] if value.strip() else [f"{key} is empty"]


# --- question-answer -----------------------------------------------------------------------------------------------

def _question_problems(row: Row, options: Mapping[str, Any]) -> list[str]:
    problems = _no_text("question", row["question"])
    for key in (k for k in ("answer", "answers") if k in row):
        value = row[key]
        if value == [] and options.get("allow_unanswerable"):
            continue
        if value == []:
            problems.append(f"{key} is an empty list; 'allow_unanswerable: true' reads it as having no answer")
        wanted = "text or a list of texts"
        wrong = [p for item in (value if isinstance(value, list) else [value]) for p in _no_text(key, item, wanted)]
        problems += wrong[:1]
    shown = [key for key in ("passage", "context") if row.get(key) is not None]
    problems += [f"{key} is {found_value(row[key])}; expected text" for key in shown if not isinstance(row[key], str)]
    if all(row.get(key) for key in ("passage", "context")):
        problems.append("it has passage and context; keep one")
    return problems


def _question(name: str, row: Row, options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    values = (row[k] for k in ("answer", "answers") if k in row)
    first, *others = dict.fromkeys(a for v in values for a in (v if isinstance(v, list) else [v])) or [""]
    passage = row.get("passage") or row.get("context") or ""
    return question(name, row["question"], first, passage=passage, references=tuple(others), **rest)


# --- prompt-completion, text-label, raw-text -----------------------------------------------------------------------

def _completion(name: str, row: Row, options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    turns = (Turn("user", (Part(row["prompt"], name="prompt"),)),
             Turn("assistant", (Part(row["completion"]),), target=True))
    return Example(name, turns, task="completion", **rest)


def _label_problems(row: Row, options: Mapping[str, Any]) -> list[str]:
    label, problems = row["label"], _no_text("text", row["text"])
    if not isinstance(label, (str, int, float)) or (isinstance(label, float) and not math.isfinite(label)):
        return [*problems, f"label is {found_value(label)}; expected text or a number"]
    return problems if str(label).strip() else [*problems, "label is empty"]


def _labelled(name: str, row: Row, options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    asked = Turn("user", (Part(row["text"], name="text"),))
    return Example(name, (asked,), task="classify", label=str(row["label"]), **rest)


def raw_text(name: str, text: str, **rest: Any) -> Example:
    """A text to be read on: nothing is asked, the objective learns all of it."""
    return Example(name, (Turn("user", (Part(text, name="text"),)),), task="text", **rest)


# --- chat ----------------------------------------------------------------------------------------------------------

def _chat_problems(row: Row, options: Mapping[str, Any]) -> list[str]:
    try:
        chat("", row, options.get("learn", "every"))
    except Wrong as wrong:
        return [str(wrong)]
    return []


def _chat(name: str, row: Row, options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    return chat(name, row, options.get("learn", "every"), **rest)


FORMATS: dict[str, Format] = {
    "question-answer": Format(
        "qa", (("question",), ("answer", "answers")), _question, _question_problems,
        lambda row: str(row.get("passage") or row.get("context") or row["question"]), ("passage", "context")),
    "prompt-completion": Format(
        "completion", (("prompt",), ("completion",)), _completion, _texts("prompt", "completion"),
        lambda row: str(row["prompt"])),
    "text-label": Format("classify", (("text",), ("label",)), _labelled, _label_problems, lambda row: str(row["text"])),
    "messages": Format("chat", (("messages",),), _chat, _chat_problems, said_by_user, ("tools",)),
    "conversations": Format("chat", (("conversations",),), _chat, _chat_problems, said_by_user, ("tools", "system")),
    "raw-text": Format("text", (("text",),), lambda name, row, options, rest: raw_text(name, row["text"], **rest),
                       _texts("text"), lambda row: str(row["text"])),
}
EXPECTED = "; ".join(f"{n}: {', '.join(' or '.join(g) for g in f.needs)}" for n, f in FORMATS.items())
if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[("auto", *FORMATS)]


def format_of_task(task: str) -> str:
    """The first format whose examples have that task; the task itself where there is none."""
    return next((name for name, f in FORMATS.items() if f.task == task), task)
