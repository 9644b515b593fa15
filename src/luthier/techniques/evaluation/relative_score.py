"""relative-score: how good answers are beside the references, by a judge who rates both alike: 100 x sum rated / sum of
references.

    value of a row = 100 x rating(answer) / mean of rating(reference over all rows), so that the mean of rows is the score

The judge is any metric; a record's `value` is its rating, of LLaVA's judge from 1 to 10. Rows where either has no rating are
left out of both sums and counted in `unrated`. A perfect answer is rated as the reference is: 100.

When it helps: long answers that words do not match, with a judge that sees what the model was shown. Source: Liu, Li, Wu, Lee
2023, arXiv 2304.08485, section 5.1 (seed 137).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import pairs


class RelativeScore(Metric, name="relative-score", seeds=[137]):
    """The judged worth of the answers in per cent of that of the references."""

    unit: ClassVar[str] = "%"
    judge: Slot[Metric] = Field(named("f1"), description="who rates an answer; higher is better, 0 or more")

    @property
    def roles(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the judge."""
        return tuple(self.judge.roles)

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`rated` and `reference` beside `value`. Raises UserError for a judge whose ratings are below 0, or who rates no
        reference above 0."""
        found = list(pairs(examples, predictions))
        rows = [e for e, _ in found]
        rated = self._rated(rows, [p for _, p in found], ctx)
        best = self._rated(rows, [replace(p, text=e.answer) for e, p in found], ctx)
        both = [b for r, b in zip(rated, best, strict=True) if r is not None and b is not None]
        if found and both and not sum(both) > 0:
            raise UserError(f"relative-score: the judge '{self.judge.info.name}' rates every reference 0; nothing can be "
                            "measured beside them. Give one that rates references above 0.")
        mean = sum(both) / len(both) if both else 1.0
        return [{"id": e.id, "value": None if r is None or b is None else 100 * r / mean, "rated": r, "reference": b}
                for e, r, b in zip(rows, rated, best, strict=True)]

    def reduce(self, records: Sequence[Mapping[str, Any]]) -> float:
        """100 x sum of ratings / sum of the references' ratings over rows with both."""
        both = [(r["rated"], r["reference"]) for r in records if r["value"] is not None]
        total = sum(b for _, b in both)
        return 100 * sum(r for r, _ in both) / total if total else float("nan")

    def details(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Share of rows that the judge did not rate."""
        return {"unrated": sum(r["value"] is None for r in records) / len(records)} if records else {}

    def _rated(self, rows: Sequence[Example], said: Sequence[Prediction], ctx: Ctx) -> list[float | None]:
        values = [r["value"] for r in self.judge.score(rows, said, ctx)]
        worst = min((v for v in values if v is not None), default=0)
        if worst < 0:
            raise UserError(f"relative-score: the judge '{self.judge.info.name}' gives {worst:g}; ratings are 0 or more.")
        return values
