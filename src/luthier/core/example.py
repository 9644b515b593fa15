"""Example: one training or test case, whatever its task and its modality."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

PartType = Literal["text", "image", "audio", "array", "tool_call"]


@dataclass(frozen=True)
class Part:
    """A piece of content. `name` says what it is in its turn (`question`, `passage`, …), for the template.

    `value` is text for text parts, `{"id", "name", "arguments"}` for tool calls, a path, a `data:` text or a nested list for
    the others.
    """

    value: Any
    type: PartType = "text"
    name: str = ""


@dataclass(frozen=True)
class Turn:
    """What one role says. `target` marks what is to be learned; it may be narrowed by character `spans`.

    `extra` holds further keys of a chat message that a chat template may read: `name`, `tool_call_id`, ….
    """

    role: Literal["system", "user", "assistant", "tool"]
    parts: tuple[Part, ...]
    target: bool = False
    spans: tuple[tuple[int, int], ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The text parts, joined by line breaks."""
        return "\n".join(p.value for p in self.parts if p.type == "text")

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The tool calls: `id`, `name` and `arguments` of each."""
        return [p.value for p in self.parts if p.type == "tool_call"]


@dataclass(frozen=True)
class Example:
    """Turns with roles and target spans, and where they come from.

    `source` is the document or section the example is about; `cluster` the unit that splits and statistics keep
    together; `references` further acceptable answers; `meta` whatever a source adds (kept, never rendered);
    `rejected` an answer that is worse than the last target turn, in its place.
    """

    id: str
    turns: tuple[Turn, ...] = ()
    source: str = ""
    cluster: str = ""
    task: str = ""
    label: str | float | None = None
    references: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] = ()
    rejected: Turn | None = None

    @property
    def answer(self) -> str:
        """Text of the last target turn; empty when there is none."""
        return next((t.text for t in reversed(self.turns) if t.target), "")

    @property
    def spoken(self) -> bool:
        """Whether it is a conversation: a chat, or messages in another task."""
        return self.task == "chat" or any(p.name == "content" for t in self.turns for p in t.parts)

    def part(self, name: str) -> str:
        """Text of the first part with that name; empty when there is none."""
        return next((p.value for t in self.turns for p in t.parts if p.name == name), "")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Example:
        """The inverse of `to_dict`."""
        rejected = row.get("rejected")
        return cls(**{**row, "turns": tuple(map(_turn, row["turns"])), "references": tuple(row["references"]),
                      "tools": tuple(row.get("tools") or ()), "rejected": _turn(rejected) if rejected else None})


def _turn(values: dict[str, Any]) -> Turn:
    return Turn(values["role"], tuple(Part(**p) for p in values["parts"]), values["target"],
                tuple((a, b) for a, b in values["spans"]), values.get("extra") or {})


def with_rejected(example: Example) -> Example:
    """The same example with the rejected answer in place of its last target turn. Raises ValueError without one."""
    if example.rejected is None:
        raise ValueError(f"example {example.id} has no rejected answer")
    last = max(i for i, t in enumerate(example.turns) if t.target)
    return replace(example, turns=(*example.turns[:last], example.rejected, *example.turns[last + 1:]), rejected=None)


def question(id: str, text: str, answer: str = "", *, passage: str = "", **rest: Any) -> Example:
    """A question-answer example: a user turn with named parts and, when there is one, the target answer."""
    asked = ((Part(passage, name="passage"),) if passage else ()) + (Part(text, name="question"),)
    turns: tuple[Turn, ...] = (Turn("user", asked),)
    if answer:
        turns += (Turn("assistant", (Part(answer),), target=True),)
    return Example(id, turns, task=rest.pop("task", "qa"), **rest)


@dataclass(frozen=True)
class Dropped:
    """A row that a step left out, and why; it goes to the ledger."""

    id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Section:
    """The text below one heading. `headings` is the path of headings from the document's top to it.

    `marks` say where the text stands in its file: (character of `text`, page, line), in order, each from 1 and 0 where a
    format has none. A mark holds until the next one.
    """

    headings: tuple[str, ...]
    text: str
    marks: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Document:
    """A document as read: `id` is its path relative to the folder that was named, `sha256` the hash of its bytes."""

    id: str
    title: str
    sections: tuple[Section, ...]
    sha256: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Document:
        """The inverse of `to_dict`."""
        return cls(**{**row, "sections": tuple(
            Section(tuple(s["headings"]), s["text"], tuple((c, p, n) for c, p, n in s.get("marks") or ()))
            for s in row["sections"])})


@dataclass(frozen=True)
class SourceFile:
    """A file on disk that a reader is asked to read; `id` as in `Document`."""

    id: str
    path: str


@dataclass(frozen=True)
class Passage:
    """A piece of a document, cut by structure.

    `headings` is the path of headings above it, `section` names that path within the document: the unit of splits.
    `page` and `line` say where it begins in its file, from 1; 0 where that is not known.
    """

    id: str
    text: str
    document: str
    section: str
    headings: tuple[str, ...] = ()
    tokens: int = 0
    page: int = 0
    line: int = 0

    @property
    def place(self) -> str:
        """Where it stands, for a reader: `file, page 3, line 12` as far as that is known."""
        known = [f"{word} {at}" for word, at in (("page", self.page), ("line", self.line)) if at]
        return ", ".join([self.document, *known])

    @property
    def shown(self) -> str:
        """The passage as a model sees it, in training and in answering: its headings, then its text on one line."""
        topic = " / ".join(self.headings)
        return " ".join((f"{topic}: " if topic else "").split() + self.text.split())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Passage:
        """The inverse of `to_dict`."""
        return cls(**{**row, "headings": tuple(row["headings"])})
