"""text-pairs: pairs of labelled texts, alike (1) or not (0), for tuning an encoder on a few of them.

With N texts of K labels and R = `rounds`,

    per-text     R rounds; in each, for every text one of its label and one of another: 2 R N pairs
    per-class    R pairs of each label and R of it with another: 2 R K pairs
    unique       every unordered pair, as it is; oversample repeats the rarer kind, undersample leaves out of the commoner one

A text is no pair with itself unless `self_pairs`, or it is the only one of its label, which is said. By `teacher` texts need no
label: R random partners of each, alike as the teacher's cosine says (distillation).

When it helps: 4 to 64 labelled texts. Source: Tunstall et al. 2022, arXiv 2209.11055 (seed 208); what the paper ran is
per-text:20.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, combinations_with_replacement
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, Turn
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx

Pair = tuple[int, int, float]


class TextPairs(DataStep, name="text-pairs", seeds=[208]):
    """Pairs of texts of one label, and of two."""

    gives: ClassVar[Literal["same", "more", "other"]] = "other"
    by: Literal["per-text", "per-class", "unique", "oversample", "undersample", "teacher"] = Field(
        "per-text", description="which pairs")
    rounds: int = Field(20, ge=1, description="R: how often partners are drawn")
    self_pairs: bool = Field(False, description="a text is a pair with itself too, in unique, oversample and undersample")

    @property
    def roles(self) -> tuple[str, ...]:  # type: ignore[override]
        """The teacher is the role `encoder`."""
        return ("encoder",) if self.by == "teacher" else ()

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        """Raises UserError for an empty text, by its id, and for rows of fewer than two labels."""
        given = list(rows)
        kept = [r for r in given if r.label is not None or self.by == "teacher"]
        yield from (Dropped(r.id, "no label", "a pair needs texts with labels") for r in given if r not in kept)
        texts = ["\n".join(t.text for t in r.turns if not t.target) for r in kept]
        empty = next((r.id for r, text in zip(kept, texts, strict=True) if not text.strip()), None)
        if empty is not None:
            raise UserError(f"text-pairs: row {empty} is an empty text.")
        labels = [str(r.label) for r in kept]
        if self.by == "teacher":
            pairs = self._taught(texts, ctx)
        else:
            if len(set(labels)) < 2:
                raise UserError(f"text-pairs needs texts of at least two labels; all {len(labels)} have "
                                f"{labels[0] if labels else 'none'}.")
            alone = sorted({label for label in labels if labels.count(label) == 1})
            if alone:
                ctx.log(f"text-pairs: {', '.join(alone)} has one text: it is paired with itself, which teaches nothing")
            pairs = self.pairs(labels, ctx.rng("text-pairs"))
        for n, (a, b, alike) in enumerate(pairs):
            turn = Turn("user", (Part(texts[a], name="first"), Part(texts[b], name="second")))
            yield Example(f"pair/{n}", (turn,), task="score", label=alike, source=kept[a].source, cluster=kept[a].cluster,
                          meta={"rows": [kept[a].id, kept[b].id]})

    def pairs(self, labels: Sequence[str], draw: np.random.Generator) -> list[Pair]:
        """(first, second, 1 or 0) numbers of texts, from their labels."""
        names = sorted(set(labels))
        own = {name: [i for i, label in enumerate(labels) if label == name] for name in names}
        others = {name: [i for i, label in enumerate(labels) if label != name] for name in names}

        def partner(i: int) -> int:
            same = [j for j in own[labels[i]] if j != i]
            return same[draw.integers(len(same))] if same else i

        def stranger(i: int) -> int:
            return others[labels[i]][draw.integers(len(others[labels[i]]))]

        if self.by == "per-text":
            return [pair for _ in range(self.rounds) for i in range(len(labels))
                    for pair in ((i, partner(i), 1.0), (i, stranger(i), 0.0))]
        if self.by == "per-class":
            drawn = [(name, own[name][draw.integers(len(own[name]))]) for name in names for _ in range(self.rounds)]
            return [pair for _, i in drawn for pair in ((i, partner(i), 1.0), (i, stranger(i), 0.0))]
        choose = combinations_with_replacement if self.self_pairs else combinations
        every = [(i, j, float(labels[i] == labels[j])) for i, j in choose(range(len(labels)), 2)]
        every += [(own[n][0], own[n][0],
                   1.0) for n in names if len(own[n]) == 1 and not self.self_pairs and self.by != "unique"]
        if self.by == "unique":
            return every
        kinds = [[p for p in every if p[2] == alike] for alike in (1.0, 0.0)]
        few, many = sorted(kinds, key=len)
        if self.by == "undersample":
            return [*few, *(many[i] for i in draw.permutation(len(many))[:len(few)])]
        more = [few[i] for n in range(-(-len(many) // max(1, len(few)))) for i in draw.permutation(len(few))]
        return [*more[:len(many)], *many]

    def _taught(self, texts: Sequence[str], ctx: Ctx) -> list[Pair]:
        """Random pairs, alike as the teacher finds them."""
        if len(texts) < 2:
            raise UserError(f"text-pairs: the teacher needs at least two texts; there are {len(texts)}.")
        seen: Any = ctx.engine.embed(ctx.roles["encoder"], texts)
        draw = ctx.rng("text-pairs")
        drawn = [(i, (i + 1 + int(draw.integers(len(texts) - 1))) % len(texts)) for _ in range(self.rounds)
                 for i in range(len(texts))]
        return [(i, j, float(seen[i] @ seen[j])) for i, j in drawn]
