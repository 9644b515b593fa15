"""mrr: mean reciprocal rank of the first gold passage among the first `k` retrieved.

MRR@k = mean over questions of 1 / rank of the first gold passage, 0 when none is among the first k. No value without
gold passages (`meta["gold"]`) or in an arm that retrieves nothing at all.

When it helps: one passage answers the question, and how far down it stands matters. Source: Voorhees 1999, "The TREC-8
question answering track report".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import ranked


class Mrr(Metric, name="mrr"):
    """Mean reciprocal rank of the first gold passage among the first k."""

    k: int = Field(10, ge=1, description="how many of the retrieved passages count")

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` in [0, 1] or None, with `k` and `shown`."""
        return ranked(examples, predictions, self.k, _reciprocal)


def _reciprocal(passages: Sequence[str], gold: frozenset[str]) -> float:
    return next((1 / rank for rank, name in enumerate(passages, 1) if name in gold), 0.0)
