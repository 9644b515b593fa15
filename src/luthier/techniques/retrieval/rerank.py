"""rerank: another retriever's passages in the order of a cross-encoder, each thing said once.

The `depth` passages that the inner retriever finds are scored by a model that reads query and passage together,

    score(q, p) = c([q; p]),    one number, no sigmoid

and ordered by it. Going down that order, a passage is left out when its embedding has a cosine above `near` with one that
stays: repetitions take the place of what else is known. Without a model the inner order stays, and only repetitions go.

When it helps: the right passage is among the first fifty but not the first three; manuals that say one thing on many
pages. Source: Nogueira and Cho 2019, "Passage re-ranking with BERT"; the threshold 0.95: seed 1 (arXiv 2404.14760).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, open_artifact
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Passage
from luthier.core.step import Ctx
from luthier.techniques.retrieval._shared import Around

FOLDER = "reranker"
Hits = list[tuple[Passage, float]]


class Rerank(Around, name="rerank", seeds=[1]):
    """Order what another retriever found by a cross-encoder, and drop near-duplicates."""

    model: str | None = Field(None, description="cross-encoder: a local folder or a hub id; the order stays if left out")
    depth: int = Field(50, ge=1, description="how many passages of the inner retriever are read again")
    near: float = Field(0.95, gt=0, le=1, description="cosine above which a passage repeats a better one; 1 keeps all")
    max_tokens: int = Field(512, ge=16, description="longest pair of query and passage that is read")

    def prepare(self, ctx: Ctx) -> dict[str, Any]:
        """The cross-encoder's place, identity and licence files."""
        if self.model is None:
            return {}
        from luthier.engine.cross_encoder import load_cross_encoder

        base = build("step", {"use": "base", "model": self.model})
        base.check()
        (ctx.folder / FOLDER).mkdir(exist_ok=True)
        found = base.run({}, replace(ctx, folder=ctx.folder / FOLDER))
        load_cross_encoder(found)  # refuses what is no cross-encoder before anything is searched
        copy_licenses([found.folder], ctx.folder)
        return {FOLDER: {"identity": found.identity, "name": found.meta["name"]}}

    def search(self, index: Artifact, queries: Sequence[str], k: int, ctx: Ctx) -> list[Hits]:
        """The k best passages of each query; fewer when fewer are left. Scores are the model's, else the inner ones.

        Raises:
            UserError: k below 1, or the index was made with another cross-encoder.
        """
        if k < 1:
            raise UserError(f"k = {k}: at least one passage must be asked for.")
        retriever, own = self.inner(index)
        found = retriever.search(own, queries, max(self.depth, k), ctx)
        if self.model is not None:
            found = self._ordered(index, queries, found)
        return [hits[:k] for hits in (found if self.near == 1 else self._distinct(found, k, ctx))]

    def _ordered(self, index: Artifact, queries: Sequence[str], found: Sequence[Hits]) -> list[Hits]:
        from luthier.engine.cross_encoder import load_cross_encoder

        base = open_artifact(index.folder / FOLDER) if (index.folder / FOLDER).exists() else None
        if base is None or index.meta[FOLDER]["identity"] != base.identity:
            raise UserError(f"This index was not made with the reranker {self.model}. Index again.")
        pairs = [(q, self.searched(p)) for q, hits in zip(queries, found, strict=True) for p, _ in hits]
        scores = iter(load_cross_encoder(base).score(pairs, self.max_tokens))
        scored = [[(p, round(next(scores), 6)) for p, _ in hits] for hits in found]
        return [sorted(hits, key=lambda hit: (-hit[1], hit[0].id)) for hits in scored]

    def _distinct(self, found: Sequence[Hits], k: int, ctx: Ctx) -> list[Hits]:
        """Each list without what repeats something above it; the k that stay are enough."""
        texts = {p.id: self.searched(p) for hits in found for p, _ in hits}
        places = {name: n for n, name in enumerate(texts)}
        vectors = ctx.engine.embed(ctx.roles["encoder"], list(texts.values()))
        left: list[Hits] = []
        for hits in found:
            kept: Hits = []
            rows: list[int] = []
            for passage, score in hits:
                row = places[passage.id]
                if len(kept) < k and (not rows or float((vectors[rows] @ vectors[row]).max()) <= self.near):
                    kept.append((passage, score))
                    rows.append(row)
            left.append(kept)
        return left
