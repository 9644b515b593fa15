"""What the training rows of a run share before their questions: a system line, or the first words of the user's turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from luthier.core.example import Example, Part, Turn

MOST = 0.5  # share of the rows that must begin so
LEAST_WORDS = 4


@dataclass(frozen=True)
class Frame:
    """A system line and the opening words of questions; either may be empty."""

    system: str = ""
    opening: str = ""


def shared_frame(rows: Sequence[Example]) -> Frame | None:
    """The frame that at least half of the rows have; None where they share nothing."""
    if len(rows) < 2:
        return None
    systems = Counter(next((t.text for t in r.turns if t.role == "system"), "") for r in rows)
    system, count = systems.most_common(1)[0]
    system = system if count >= MOST * len(rows) else ""
    opening = _opening([_asked(r).split() for r in rows])
    return Frame(system, opening) if system or opening else None


def behind(frame: Frame | None, example: Example) -> Example:
    """The same request behind a frame."""
    if frame is None:
        return example
    system = (Turn("system", (Part(frame.system, name="content"),)),) if frame.system else ()
    return replace(example, turns=(*system, *(_opened(t, frame.opening) for t in example.turns)))


def _opened(turn: Turn, opening: str) -> Turn:
    if not opening or turn.role != "user":
        return turn
    return replace(turn, parts=tuple(replace(p, value=f"{opening} {p.value}") if p.name in ("question", "content") else p
                                     for p in turn.parts))


def _asked(example: Example) -> str:
    return example.part("question") or next((t.text for t in example.turns if t.role == "user"), "")


def _opening(texts: list[list[str]]) -> str:
    """The longest beginning that half of the texts share, if it has four words or more."""
    need, found = MOST * len(texts), ""
    for size in range(1, max(map(len, texts), default=0) + 1):
        begins, count = Counter(" ".join(t[:size]) for t in texts if len(t) > size).most_common(1)[0] \
            if any(len(t) > size for t in texts) else ("", 0)
        if count < need:
            break
        found = begins
    return found if len(found.split()) >= LEAST_WORDS else ""
