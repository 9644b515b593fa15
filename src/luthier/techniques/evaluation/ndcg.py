"""ndcg: how high the gold passages stand among the first `k` retrieved.

With relevance 1 for gold passages and 0 for others, DCG@k = sum over ranks i = 1 … k of rel(i) / log2(i + 1), and
nDCG@k = DCG@k / IDCG@k, where the ideal list has all gold passages first and is cut at k too. No value without gold
passages (`meta["gold"]`) or in an arm that retrieves nothing at all.

When it helps: a reader trusts the first passages most; recall doesn't see their order. Source: Järvelin and Kekäläinen
2002, "Cumulated gain-based evaluation of IR techniques"; the discount by log2(rank + 1) is that of Burges et al. 2005.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import Any

from pydantic import Field

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import ranked


class Ndcg(Metric, name="ndcg"):
    """Normalised discounted cumulative gain of the gold passages among the first k."""

    k: int = Field(10, ge=1, description="how many of the retrieved passages count")

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` in [0, 1] or None, with `k` and `shown`."""
        return ranked(examples, predictions, self.k, self._gain)

    def _gain(self, passages: Sequence[str], gold: frozenset[str]) -> float:
        gain = sum(1 / log2(rank + 1) for rank, name in enumerate(passages, 1) if name in gold)
        return gain / sum(1 / log2(rank + 1) for rank in range(1, min(self.k, len(gold)) + 1))
