"""chrf: how many of the n-grams of characters an answer shares with the reference, as chrF of one sentence.

    chrF = (1 + b²) P R / (b² P + R)

with P and R the means over n = 1..6 of the share of n-grams of the answer, and of the reference, that the other has. White
space is left out, b = 2: recall counts twice as much. Orders that a text is too short for are left out of both means. Of
several references the best counts. When it helps: sentences with many right wordings. Source: Popović 2015, "chrF:
character n-gram F-score for automatic MT evaluation".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import gold_answers, pairs


class Chrf(Metric, name="chrf"):
    """F-score of shared character n-grams, from 0 to 1."""

    order: int = Field(6, ge=1, description="longest n-gram of characters")
    beta: float = Field(2.0, gt=0, description="how many times as much recall counts as precision")

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` from 0 to 1; None for a question without an answer."""
        return [{"id": e.id, "value": max((self.between(p.text, g) for g in gold_answers(e)), default=None)}
                for e, p in pairs(examples, predictions)]

    def between(self, said: str, wanted: str) -> float:
        """chrF of one answer and one reference; case counts."""
        precisions, recalls = [], []
        for n in range(1, self.order + 1):
            mine, theirs = _grams(said, n), _grams(wanted, n)
            if not mine or not theirs:
                continue
            shared = sum((mine & theirs).values())
            precisions.append(shared / sum(mine.values()))
            recalls.append(shared / sum(theirs.values()))
        if not precisions:
            return 0.0
        precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
        weighed = self.beta ** 2 * precision + recall
        return (1 + self.beta ** 2) * precision * recall / weighed if weighed else 0.0


def _grams(text: str, n: int) -> Counter[str]:
    letters = "".join(text.split())
    return Counter(letters[i:i + n] for i in range(len(letters) - n + 1))
