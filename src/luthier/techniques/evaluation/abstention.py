"""abstention: precision, recall and F1 of saying that the documents have no answer, over all questions together.

With A the questions on which the model abstains and U those without an answer: precision = |A ∩ U| / |A|, recall = |A ∩
U| / |U|, F1 = 2|A ∩ U| / (|A| + |U|). Recall is the mean of `abstains`; a model that always abstains has recall 1 and a
precision of |U| / all questions. They are numbers of a whole set of questions: no single question has a value, and
`details` gives all three.

When it helps: beside the share of right answers; abstaining more always helps one of `abstains` and `over-abstains` and
hurts the other. Source: Rajpurkar et al. 2018, "Know what you don't know"; Zhang et al. 2024, "R-Tuning" (precision and
recall of refusals).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import ABSTENTIONS, abstained, gold_answers, normalise, pairs


class Abstention(Metric, name="abstention", seeds=[1]):
    """F1 of abstaining where there is no answer, with precision and recall beside it."""

    phrases: tuple[str, ...] = Field(ABSTENTIONS, description="an answer that begins with one of these abstains")

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """No `value`; `abstained`, and `answerable` (None for what is no question with an answer in words)."""
        records = []
        for example, prediction in pairs(examples, predictions):
            answers = gold_answers(example)
            right = normalise(prediction.text) in map(normalise, answers)
            records.append({"id": example.id, "value": None,
                            "abstained": abstained(prediction.text, self.phrases) and not right,
                            "answerable": bool(answers) if example.task == "qa" else None})
        return records

    def reduce(self, records: Sequence[Mapping[str, Any]]) -> float:
        """F1; nan where no question lacks an answer and none was abstained from."""
        silent, without, both = _counts(records)
        return 2 * both / (silent + without) if silent + without else float("nan")

    def details(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """`precision`, `recall` and `f1`, those that are defined; nothing where every question has an answer."""
        silent, without, both = _counts(records)
        if not without:
            return {}
        return {**({"precision": both / silent} if silent else {}), "recall": both / without, "f1": self.reduce(records)}


def _counts(records: Sequence[Mapping[str, Any]]) -> tuple[int, int, int]:
    """How often the model abstained, how many questions have no answer, how often both."""
    asked = [r for r in records if r["answerable"] is not None]
    return (sum(r["abstained"] for r in asked), sum(not r["answerable"] for r in asked),
            sum(r["abstained"] and not r["answerable"] for r in asked))
