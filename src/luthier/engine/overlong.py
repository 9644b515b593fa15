"""Rows that are too long, by policy: what is left of an example, and what was taken from it.

`split` divides an example with several learned turns into rows that each fit: every learned turn is learned in exactly
one of them, behind as much of the conversation before it as there is room for. `truncate-context` cuts what is not
learned, from the left of its longest part: passages and earlier turns first, a system prompt or the last message only
when nothing else is left; never a question, its cue or a target. What each did stands in `render.cuts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from luthier.core.example import Dropped, Example, Part, Turn
from luthier.core.kinds import DroppedRow

if TYPE_CHECKING:
    from luthier.engine.rendering import Render


def pieces(example: Example, render: Render) -> list[Example]:
    """The examples to be rendered as one row each; see `Render.pieces`."""
    from luthier.engine.rendering import Cut

    if not any(t.target for t in example.turns):
        return [example]
    found = [example] if render.one_row(example) else [_only(example, [n]) for n in _learned(example)]
    if render.over_long == "truncate-context":
        shortened = [_shortened(part, render) for part in found]
        cut = sum(tokens for _, tokens in shortened)
        if cut:
            render.cuts.append(Cut(example.id, cut, len(found), f"{cut} tokens of context cut"))
        return [part for part, _ in shortened]
    if render.over_long == "split":
        divided, lost = _divided(found, render)
        if len(divided) > len(found) or lost:
            detail = f"divided into {len(divided)} rows" + (f"; {lost} tokens of turns too long by themselves" if lost else "")
            render.cuts.append(Cut(example.id, lost, len(divided), detail))
        if not divided:
            raise DroppedRow(Dropped(example.id, "too long", f"no learned turn fits with the message before it, at most "
                                                             f"max_tokens_per_example={render.max_tokens}"))
        return divided
    return found


def _learned(example: Example) -> list[int]:
    return [n for n, turn in enumerate(example.turns) if turn.target]


def _only(example: Example, learned: list[int], start: int = 0) -> Example:
    """The example up to its last of `learned` turns, only these learned; turns before `start` but the system's left out."""
    turns = [replace(turn, target=n in learned) for n, turn in enumerate(example.turns[:learned[-1] + 1])
             if n >= start or turn.role == "system"]
    return replace(example, turns=tuple(turns))


def _size(example: Example, render: Render) -> int:
    return render.length(render.whole(example))


# --- split ---------------------------------------------------------------------------------------------------------

def _divided(found: list[Example], render: Render) -> tuple[list[Example], int]:
    """Rows that fit, and how many learned tokens no row could hold."""
    divided: list[Example] = []
    lost = 0
    for part in found:
        if _size(part, render) <= render.max_tokens:
            divided.append(part)
            continue
        for group, fits in _groups(part, render):
            if fits:
                divided.append(group)
            else:
                lost += sum(render.whole(group).targets)
    return divided, lost


def _groups(example: Example, render: Render) -> Iterator[tuple[Example, bool]]:
    """Consecutive learned turns, as many to a row as fit, and whether the row fits."""
    learned = _learned(example)
    at = 0
    while at < len(learned):
        starts = _starts(example, learned[at])
        end = at + 1
        while end < len(learned) and _size(_only(example, learned[at:end + 1], starts[0]), render) <= render.max_tokens:
            end += 1
        row = _only(example, learned[at:end], starts[0])
        for start in starts[1:]:
            longer = _only(example, learned[at:end], start)
            if _size(longer, render) > render.max_tokens:
                break
            row = longer
        yield row, _size(row, render) <= render.max_tokens
        at = end


def _starts(example: Example, learned: int) -> list[int]:
    """Where a row whose first learned turn is `learned` may begin, the nearest first: at messages of the user."""
    users = [n for n in range(learned, -1, -1) if example.turns[n].role == "user"]
    return users or [0]


# --- truncate-context ----------------------------------------------------------------------------------------------

def _shortened(example: Example, render: Render) -> tuple[Example, int]:
    """The example cut until it fits, and how many tokens shorter its row became."""
    before = size = _size(example, render)
    short = example
    while size > render.max_tokens:
        place = _longest(short, render)
        if place is None:
            raise DroppedRow(Dropped(example.id, "too long", f"{size} tokens are left when all context is cut, at most "
                                                             f"max_tokens_per_example={render.max_tokens}"))
        short = _cut(short, place, size - render.max_tokens, render)
        size = _size(short, render)
    return short, before - size


def _longest(example: Example, render: Render) -> tuple[int, int] | None:
    """Turn and part of the longest text that may be cut; None when none is left."""
    asked = max((n for n, t in enumerate(example.turns) if not t.target), default=-1)
    last: list[tuple[int, int, int]] = []
    first: list[tuple[int, int, int]] = []
    for n, turn in enumerate(example.turns):
        for m, part in enumerate(turn.parts):
            if turn.target or part.type != "text" or part.name == "question":
                continue
            size = len(render.encode(part.value))
            kept_for_last = part.name != "passage" and (turn.role == "system" or n == asked)
            if size > (part.name != "passage"):  # a message keeps one token: templates refuse an empty one
                (last if kept_for_last else first).append((size, n, m))
    chosen = max(first or last, default=None)
    return chosen and (chosen[1], chosen[2])


def _cut(example: Example, place: tuple[int, int], tokens: int, render: Render) -> Example:
    """The example with so many tokens less on the left of one text, or with the passage gone."""
    n, m = place
    turn = example.turns[n]
    part = turn.parts[m]
    offsets = render.tokenizer(part.value, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"]
    keep = len(offsets) - tokens
    if keep <= 0 and part.name == "passage":
        parts = tuple(p for k, p in enumerate(turn.parts) if k != m)
    else:
        text = part.value[offsets[-max(keep, 1)][0]:]
        if text == part.value:  # signs of several tokens each: cut one sign more
            text = part.value[1:]
        parts = tuple(Part(text, p.type, p.name) if k == m else p for k, p in enumerate(turn.parts))
    turns = tuple(Turn(t.role, parts, t.target, t.spans, t.extra) if k == n else t for k, t in enumerate(example.turns))
    return replace(example, turns=turns)
