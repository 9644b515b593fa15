"""Filter: each question once. Two questions are the same when most of their words are, and most of their topic words.

The second condition keeps "What does str.ljust(width) do?" beside "What does str.rjust(width) do?". Questions may instead
be compared by the cosine of an encoder's embeddings, and only within their passage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import content_words, jaccard, words


class Distinct(DataStep, name="distinct"):
    """Leave out questions that repeat an earlier one."""

    threshold: float = Field(0.8, gt=0, le=1, description="share of common words, or cosine, from which two questions are one")
    by: Literal["words", "embedding"] = Field("words", description="words, or cosine of an encoder's embeddings (try 0.95)")
    within: Literal["all", "passage"] = Field("all", description="which questions are compared with each other")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        if self.by == "embedding":
            yield from self._by_embedding(list(rows), ctx)
        elif self.within == "passage":
            groups: dict[str, list[Example]] = {}
            for row in rows:
                groups.setdefault(row.source, []).append(row)
            for group in groups.values():
                yield from self._by_words(iter(group))
        else:
            yield from self._by_words(rows)

    def _by_embedding(self, rows: list[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        if "encoder" not in ctx.roles:
            raise UserError("distinct:by=embedding needs an encoder: inputs: {encoder: encoder}.")
        vectors = ctx.engine.embed(ctx.roles["encoder"], [r.part("question") for r in rows]) if rows else ()
        kept: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            group = kept.setdefault(row.source if self.within == "passage" else "", [])
            same = next((j for j in group if float(vectors[i] @ vectors[j]) > self.threshold), None)
            if same is None:
                group.append(i)
                yield row
            else:
                yield Dropped(row.id, "repeats a question", f"{row.part('question')} (as {rows[same].id})")

    def _by_words(self, rows: Iterator[Example]) -> Iterator[Example | Dropped]:
        kept: list[tuple[str, set[str], set[str]]] = []
        by_word: dict[str, list[int]] = {}
        for row in rows:
            asked, topic = set(words(row.part("question"))), content_words(row.part("question"))
            near = sorted({i for w in asked for i in by_word.get(w, ())})
            same = next((kept[i][0] for i in near if jaccard(asked, kept[i][1]) >= self.threshold
                         and jaccard(topic, kept[i][2]) >= self.threshold), None)
            if same is not None:
                yield Dropped(row.id, "repeats a question", f"{row.part('question')} (as {same})")
                continue
            for word in asked:
                by_word.setdefault(word, []).append(len(kept))
            kept.append((row.id, asked, topic))
            yield row
