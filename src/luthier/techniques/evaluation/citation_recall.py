"""citation-recall: share of questions whose answer cites a passage that holds the answer.

value = [some gold passage is cited]. A question with several gold passages needs one of them, as in `recall`, since
each of them holds the answer. Retrieval that did not find the passage counts against it; `shown` says whether it stood
in the prompt, and `details` gives the share among those. No value without gold passages (`meta["gold"]`) or in an arm
that retrieves nothing.

When it helps: beside `citation-precision`, which a model that cites once a day would win. Source: Gao et al. 2023,
"Enabling large language models to generate text with citations" (ALCE), with gold passages in place of an entailment
model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import gold_passages, pairs, retrieves


class CitationRecall(Metric, name="citation-recall", seeds=[1]):
    """Share of questions whose answer cites a gold passage."""

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` 1.0, 0.0 or None; `shown` whether a gold passage stood in the prompt."""
        applies = retrieves(predictions)
        records = []
        for example, prediction in pairs(examples, predictions):
            gold = gold_passages(example)
            value = float(not gold.isdisjoint(prediction.citations)) if applies and gold else None
            shown = not gold.isdisjoint(prediction.passages[:len(prediction.shown)])
            records.append({"id": example.id, "value": value, "shown": shown})
        return records

    def details(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """`where shown`: the share among questions whose gold passage stood in the prompt."""
        values = [r["value"] for r in records if r["shown"] and r["value"] is not None]
        return {"where shown": sum(values) / len(values)} if values else {}
