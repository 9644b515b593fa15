"""rerank: of several questions about one passage and one answer, keep those that a metric finds best.

Rows are candidates for the same pair when passage (or source) and answer are equal. Each group keeps its `keep_best` rows of
highest value, and of those the ones of at least `min_score`; equal values keep the order of the rows. The value goes to
`meta["score"]`. Rows for which the metric has no value are left out. A metric where lower is better is read the other way.

When it helps: a writer that makes several questions for each answer, of which some lead elsewhere. Source: Mohammadshahi et
al. 2023, "RQUGE", section 5: domain adaptation with re-ranked synthetic questions (seed 106).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.example import Dropped, Example
from luthier.core.kinds import DataStep, Metric, Prediction
from luthier.core.step import Ctx


class Rerank(DataStep, name="rerank", seeds=[106]):
    """The best candidates of each passage and answer."""

    metric: Slot[Metric] = Field(named("rquge"), description="what says how good a row is")
    keep_best: int = Field(1, ge=1, description="rows of each passage and answer that are kept")
    min_score: float | None = Field(None, description="rows worse than this are left out, whatever the others are")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        """All rows are held: the best can't be known before the last."""
        given = list(rows)
        if not given:
            return
        records = self.metric.score(given, [Prediction(e.id) for e in given], ctx)
        sign = 1 if type(self.metric).higher_is_better else -1
        values = [None if r["value"] is None else float(r["value"]) for r in records]
        groups: dict[tuple[str, str], list[int]] = {}
        for i, row in enumerate(given):
            groups.setdefault((row.part("passage") or row.source, row.answer), []).append(i)
        best = {i for group in groups.values()
                for i in sorted((i for i in group if values[i] is not None),
                                key=lambda i: -sign * (values[i] or 0.0))[:self.keep_best]}
        for i, (row, value) in enumerate(zip(given, values, strict=True)):
            if value is None:
                yield Dropped(row.id, "no score", f"{self.metric.info.name} has no value for it")
            elif self.min_score is not None and sign * value < sign * self.min_score:
                yield Dropped(row.id, "low score", f"{value:.3g}, {self.min_score:g} is needed")
            elif i not in best:
                yield Dropped(row.id, "a better candidate", f"{value:.3g}; {self.keep_best} of each answer are kept")
            else:
                yield replace(row, meta={**row.meta, "score": value})
