"""recall: share of questions for which a passage that holds the answer is among the first `k` retrieved.

recall@k = mean over questions of [some gold passage is among the first k]. A question with several gold passages needs
one of them (success at k). No value without gold passages (`meta["gold"]`) or in an arm that retrieves nothing at all;
a question for which retrieval came back empty counts 0. `shown` says how many passages there were: with fewer than `k`
the number is that of a shorter list. `details` gives recall at 1, 3, 5 and 10 too, up to the depth that was searched.

When it helps: an answer can't be better than the passages it is read from. Source: Karpukhin et al. 2020, "Dense
passage retrieval for open-domain question answering" (top-k retrieval accuracy).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import gold_passages, pairs, retrieves


class Recall(Metric, name="recall"):
    """Share of questions with a gold passage among the first k."""

    # How deep an arm searches for it, so that recall can be told at every depth below.
    depth: ClassVar[int] = 10
    depths: ClassVar[tuple[int, ...]] = (1, 3, 5, 10)
    k: int = Field(5, ge=1, description="how many of the retrieved passages count")

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` 1.0, 0.0 or None, with `k`, `shown` and the `rank` of the first gold passage (None: not found)."""
        applies = retrieves(predictions)
        records = []
        for example, prediction in pairs(examples, predictions):
            gold = gold_passages(example)
            found = float(not gold.isdisjoint(prediction.passages[:self.k])) if applies and gold else None
            rank = next((n for n, name in enumerate(prediction.passages, 1) if name in gold), None)
            records.append({"id": example.id, "value": found, "k": self.k, "shown": len(prediction.passages), "rank": rank})
        return records

    def details(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """`recall@1` and so on, of the questions that have a value; depths beyond what was searched are left out."""
        known = [r for r in records if r["value"] is not None]
        searched = max((r["shown"] for r in known), default=0)
        return {f"recall@{k}": sum(r["rank"] is not None and r["rank"] <= k for r in known) / len(known)
                for k in self.depths if k <= searched}
