"""Filter: answers that stand in their passage.

`substring`: the answer stands there as it is, case and white space aside. `words`: the share of the answer's words that
occur in the passage (recall, with repetition) is at least `threshold`; 0 keeps every row. Letters of scripts that write no
spaces count as words of their own. Seed 14.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from luthier.core.example import Dropped, Example
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import units


class Grounded(DataStep, name="grounded", version=1):
    """Leave out rows whose answer does not stand in the passage."""

    by: Literal["words", "substring"] = Field("words", description="share of words, or the whole answer as it is")
    threshold: float = Field(0.8, ge=0, le=1, description="least share of the answer's words that stand in the passage")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        for row in rows:
            passage = row.part("passage")
            if self.by == "substring":
                inside = _flat(row.answer) in _flat(passage)
                why = "it does not stand there as it is"
            else:
                share = recall(row.answer, passage)
                inside, why = share >= self.threshold, f"{share:.0%} of its words stand there"
            yield row if inside else Dropped(row.id, "not grounded", f"{why}: {row.answer}")


def recall(answer: str, passage: str) -> float:
    """Share of the answer's words found in the passage, with repetition; 0 for an answer without words."""
    wanted, there = Counter(units(answer)), Counter(units(passage))
    return (wanted & there).total() / wanted.total() if wanted else 0.0


def _flat(text: str) -> str:
    return " ".join(text.casefold().split())
