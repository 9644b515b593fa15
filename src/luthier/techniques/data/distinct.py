"""Filter: each question once. Two questions are the same when most of their words are, and most of their topic words.

The second condition keeps "What does str.ljust(width) do?" beside "What does str.rjust(width) do?".
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from luthier.core.example import Dropped, Example
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import content_words, jaccard, words


class Distinct(DataStep, name="distinct"):
    """Leave out questions that repeat an earlier one."""

    threshold: float = Field(0.8, gt=0, le=1, description="share of common words from which two questions are one")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
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
