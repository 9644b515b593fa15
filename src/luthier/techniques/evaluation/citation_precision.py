"""citation-precision: share of the passages an answer cites that hold the answer.

value = |cited ∩ gold| / |cited| for an answer that cites something; a number that no shown passage has is a wrong
citation. No value for an answer that cites nothing (`citation-recall` counts that) and for a question whose gold
passages are not known (`meta["gold"]`). A gold passage is one that a question was written from or whose quote it holds:
another passage that answers it too counts as wrong, so the number is a lower bound.

When it helps: a citation that is not there to be checked is worth less than none. Source: Gao et al. 2023, "Enabling
large language models to generate text with citations" (ALCE), with gold passages in place of an entailment model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import gold_passages, pairs


class CitationPrecision(Metric, name="citation-precision", seeds=[1]):
    """Share of cited passages that are gold."""

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` in [0, 1] or None, with what was `cited`."""
        records = []
        for example, prediction in pairs(examples, predictions):
            gold, cited = gold_passages(example), prediction.citations
            value = sum(name in gold for name in cited) / len(cited) if gold and cited else None
            records.append({"id": example.id, "value": value, "cited": list(cited)})
        return records
