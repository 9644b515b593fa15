"""One task in several phrasings: templates, items, small changes of both, and which option a model prefers under each.

A template is a text with slots in braces: `{input}` or the names of an item's fields, and `{options}`, the list of what may be
answered. An option is weighed by the log-probability of its tokens after the prompt, its mean by default.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from luthier.core.errors import UserError
from luthier.core.example import Example, question
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.engine.subjects import Role, Subject, parted

Kind = Literal["observed", "unobserved", "adversarial"]
By = Literal["sum", "token"]
PERTURBATIONS = ("typo", "delimiter", "position", "distractor", "order", "letters")
DISTRACTOR = "This text was prepared on a Tuesday."
_SLOT = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"[A-Za-z]{4,}")


@dataclass(frozen=True)
class Item:
    """One case: the texts of its fields, the options, and the number of the right one."""

    id: str
    fields: Mapping[str, str]
    options: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Phrasing:
    """One way to ask. `order`: options are shown in an order drawn for each item; `letters`: and answered by letter."""

    id: str
    kind: str
    template: str
    order: bool = False
    letters: bool = False


def check(phrasings: Sequence[Phrasing], items: Sequence[Item], *, least: int) -> None:
    """Refuse what would make spread or drop mean something else.

    Raises:
        UserError: too few phrasings, the same text observed and unobserved, a template without one of the items' fields or
            with an unknown slot, a template that names an option outside of `{options}`, or items with different options.
    """
    if len(phrasings) < least:
        raise UserError(f"{len(phrasings)} phrasing(s): at least {least} are needed, or their spread can't be told.")
    if not items:
        raise UserError("There are no items to ask about.")
    kinds: dict[str, Phrasing] = {}
    for p in phrasings:
        other = kinds.setdefault(" ".join(p.template.split()), p)
        if other.kind != p.kind:
            raise UserError(f"Phrasings {other.id} and {p.id} are the same text, {other.kind} and {p.kind}. Leave one out.")
    fields = set(items[0].fields)
    for p in phrasings:
        slots = set(_SLOT.findall(p.template))
        for name in sorted(fields - slots):
            raise UserError(f"Phrasing {p.id} has no {{{name}}}: its items would not be seen. Template: {p.template!r}")
        for name in sorted(slots - fields - {"options"}):
            raise UserError(f"Phrasing {p.id} has the slot {{{name}}}, and items have only: {', '.join(sorted(fields))}.")
    sets = {tuple(sorted(i.options)) for i in items}
    if len(sets) > 1 and len({len(s) for s in sets}) > 1:
        raise UserError("Items have different numbers of options; chance would not be the same. Divide them into tasks.")
    if len(sets) == 1:
        for p in phrasings:
            bare = set(re.findall(r"\w+", _SLOT.sub(" ", p.template).lower()))
            named = [o for o in items[0].options if set(re.findall(r"\w+", o.lower())) <= bare]
            if 0 < len(named) < len(items[0].options):
                raise UserError(f"Phrasing {p.id} names the answer {named[0]!r} and not the others: it leaks a label.")


def perturbed(phrasing: Phrasing, change: str, rng: Rng) -> Phrasing:
    """The same phrasing with one change that leaves its meaning: of its words, never of what stands in its slots.

    typo: two neighbouring letters exchanged in one of five words of 4 letters or more, at least one. delimiter: colons and
    line breaks become dashes and bars. position: what stands before the first slot's line moves to the end. distractor: a
    sentence that says nothing about the task comes first. order: options in a drawn order. letters: options by letter.
    """
    named = replace(phrasing, id=f"{phrasing.id}+{change}", kind=f"perturbed by {change}")
    text = phrasing.template
    if change == "order":
        return replace(named, order=True)
    if change == "letters":
        return replace(named, letters=True)
    if change == "delimiter":
        return replace(named, template=text.replace(":", " -").replace("\n", " | "))
    if change == "distractor":
        return replace(named, template=f"{DISTRACTOR}\n{text}")
    if change == "position":
        lines = text.split("\n")
        first = next(n for n, line in enumerate(lines) if _SLOT.search(line))
        return replace(named, template="\n".join([*lines[first:], *lines[:first]]))
    if change == "typo":
        return replace(named, template=_typos(text, rng(f"typo/{phrasing.id}")))
    raise UserError(f"There is no change '{change}'. Legal: {', '.join(PERTURBATIONS)}.")


def _typos(text: str, draw: Any) -> str:
    pieces = re.split(r"(\{\w+\})", text)
    places = [(n, m.start()) for n, piece in enumerate(pieces) if not _SLOT.fullmatch(piece) for m in _WORD.finditer(piece)]
    if not places:
        return text
    for at in draw.permutation(len(places))[:max(1, len(places) // 5)]:
        n, start = places[at]
        p = pieces[n]
        pieces[n] = p[:start + 1] + p[start + 2] + p[start + 1] + p[start + 3:]
    return "".join(pieces)


def shown(phrasing: Phrasing, item: Item, rng: Rng) -> Example:
    """The item as it is asked. `meta["options"]` are the answers in the ITEM's own order, whatever order is shown."""
    count = len(item.options)
    order = [int(i) for i in rng("options", item.id).permutation(count)] if phrasing.order else list(range(count))
    letters = string.ascii_uppercase[:count]
    if phrasing.letters:
        listed = "\n" + "\n".join(f"{letters[place]}. {item.options[i]}" for place, i in enumerate(order))
        answers = [letters[order.index(i)] for i in range(count)]
    else:
        listed, answers = ", ".join(item.options[i] for i in order), list(item.options)
    has_list = "{options}" in phrasing.template
    template = phrasing.template + ("\n{options}" if phrasing.letters and not has_list else "")
    text = _SLOT.sub(lambda m: listed if m[1] == "options" else item.fields[m[1]], template)
    return question(f"{phrasing.id}/{item.id}", text, task="multiple-choice", label=item.right, meta={"options": answers})


def preferred(ctx: Ctx, subject: Subject, role: Role, phrasings: Sequence[Phrasing], items: Sequence[Item], by: By = "token"
              ) -> list[list[int]]:
    """[phrasings][items] number of the option that a model finds the likeliest; the first of equals."""
    from luthier.engine.rendering import with_answer

    asked = [shown(p, i, ctx.rng) for p in phrasings for i in items]
    render = subject.render(role, asked[:1])
    sides, owners = [], []
    for n, row in enumerate(asked):
        for option in row.meta["options"]:
            prompt, answer = parted(render.whole(with_answer(row, option)))
            ends = next((k for k, token in enumerate(answer) if token in render.stop_ids), len(answer))
            sides.append((prompt, answer[:max(1, ends)]))
            owners.append(n)
    found: list[list[float]] = [[] for _ in asked]
    for n, told in zip(owners, subject.token_scores(ctx, role, sides), strict=True):
        found[n].append(sum(told) if by == "sum" else sum(told) / len(told))
    best = [max(range(len(f)), key=f.__getitem__) for f in found]
    return [best[n:n + len(items)] for n in range(0, len(best), len(items))]


def items_of(rows: Iterable[Example], count: int) -> list[Item]:
    """Items of rows with options, or with labels of which there are at most 12; the first `count` at equal distances."""
    given = list(rows)
    labels = sorted({str(r.label) for r in given if r.label is not None and "options" not in r.meta})
    made = []
    for r in given:
        text = r.part("question") or "\n".join(t.text for t in r.turns if not t.target)
        if "options" in r.meta:
            made.append(Item(r.id, {"input": text}, tuple(r.meta["options"]), int(str(r.label))))
        elif r.label is not None and 2 <= len(labels) <= 12:
            made.append(Item(r.id, {"input": text}, tuple(labels), labels.index(str(r.label))))
    return [made[n * len(made) // min(count, len(made))] for n in range(min(count, len(made)))]
