"""recall-em: 1 where the answer holds the right one as it stands, after SQuAD's normalisation; 0 otherwise.

value = [some acceptable answer's normalised words stand in the prediction's, one after the other]. Words are whole: "art" does
not stand in "party". Questions without an answer have no value.

When it helps: short facts in long answers, stricter than token-recall. Source: Adlakha et al. 2023 (seed 49).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import bag, gold_answers, pairs


class RecallEm(Metric, name="recall-em", seeds=[49]):
    """Share of answers that hold the right one word for word."""

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` 1.0, 0.0 or None."""
        return [{"id": e.id, "value": max((float(_stands(a, p.text)) for a in gold_answers(e)), default=None)}
                for e, p in pairs(examples, predictions)]


def _stands(answer: str, text: str) -> bool:
    return f" {' '.join(bag(answer))} " in f" {' '.join(bag(text))} "
