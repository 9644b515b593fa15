"""Hard negatives: the texts that an encoder takes for an answer and that are none, false negatives left out.

With f unit vectors, q a query, P its right texts (all of them) and c a candidate, c is a negative of q when

    f(q)·f(c) <= p - margin |p|,   p = min over P of f(q)·f(p)        not too good to be wrong
    f(c)·f(p) <= near for every p in P                                no repetition of what is right

and none of the harder ones chosen is a repetition of it. The hardest come first. When it helps: in-batch negatives are
easy, and a retriever learns most from what it confuses; but what stands above the right text is often right too. Source:
Moreira et al. 2024, "NV-Retriever", TopK-PercPos; retrieval order of seed 1 (arXiv 2404.14760): mined by the retriever
in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Example, Part
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx

if TYPE_CHECKING:
    import numpy as np

ROWS = 256


class MineNegatives(DataStep, name="mine-negatives", seeds=[1]):
    """Give each pair of query and document its hardest negatives, as parts named `negative`, ids in `meta`.

    `ctx.roles["encoder"]` embeds; `ctx.stream("texts")` gives what is searched: (id, text) pairs. A row for which nothing
    is left keeps its pair and has no negatives: the others of its batch are.
    """

    roles: ClassVar[tuple[str, ...]] = ("encoder",)
    negatives: int = Field(2, ge=1, description="most negatives of a row")
    margin: float = Field(0.05, ge=0, le=1, description="share of the right text's score that a negative must stay below it")
    near: float = Field(0.95, gt=0, le=1, description="cosine from which two texts are one")
    skip: int = Field(0, ge=0, description="how many of the hardest candidates are passed over")
    depth: int = Field(200, ge=1, description="how many of the nearest texts are looked at")
    max_tokens: int = Field(256, ge=8, description="how much of a text the encoder reads")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example]:
        """Every row, with negatives where there are any."""
        texts: list[tuple[str, str]] = list(ctx.stream("texts"))
        if not texts:
            raise UserError("mine-negatives needs the texts that are searched: use it in a step with the input 'documents'.")
        encoder = ctx.roles["encoder"]
        vectors = ctx.engine.embed(encoder, [text for _, text in texts], self.max_tokens)
        places = {name: n for n, (name, _) in enumerate(texts)}
        done = 0
        while batch := list(islice(rows, ROWS)):
            sides = [r.part("question") for r in batch], [r.part("document") or r.part("passage") for r in batch]
            queries, right = (ctx.engine.embed(encoder, side, self.max_tokens) for side in sides)
            for row, query, own in zip(batch, queries, right, strict=True):
                at = [places[p] for p in _positives(row) if p in places]
                chosen = self._chosen(query, own, at, vectors)
                yield _with_negatives(row, [texts[n] for n in chosen])
            done += len(batch)
            ctx.progress(done, done, "rows searched for negatives")

    def _chosen(self, query: np.ndarray, own: np.ndarray, positives: Sequence[int], vectors: np.ndarray) -> list[int]:
        """Places of the negatives of one query, the hardest first. query, own: [width], vectors: [texts, width]."""
        import numpy as np

        right = np.vstack([own, vectors[list(positives)]])
        worst = float((right @ query).min())
        scores = vectors @ query
        scores[list(positives)] = -np.inf
        order = np.argsort(-scores, kind="stable")[:self.depth]
        kept: list[int] = []
        passed = 0
        for n in order.tolist():
            if len(kept) == self.negatives or scores[n] == -np.inf:
                break
            others = np.vstack([right, vectors[kept]])
            if scores[n] > worst - self.margin * abs(worst) or float((others @ vectors[n]).max()) > self.near:
                continue
            passed += 1
            if passed > self.skip:
                kept.append(n)
        return kept


def _positives(row: Example) -> list[str]:
    """Ids of every text that is right for a row's query."""
    named = row.meta.get("positives") or row.meta.get("gold") or ()
    return list(dict.fromkeys(str(n) for n in (*named, row.meta.get("document"), row.source) if n))


def _with_negatives(row: Example, found: Sequence[tuple[str, str]]) -> Example:
    turns = tuple(replace(t, parts=(*(p for p in t.parts if p.name != "negative"),
                                    *(Part(text, name="negative") for _, text in found)))
                  if any(p.name in ("document", "passage") for p in t.parts) else t for t in row.turns)
    return replace(row, turns=turns, meta={**row.meta, "negatives": [name for name, _ in found]})
