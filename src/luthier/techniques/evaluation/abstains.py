"""abstains: share of the questions without an answer to which the model says that it has none.

A prediction abstains when it is empty or its normalised words begin with those of one of `phrases`. The mean is over
question-answer examples that have no acceptable answer; all others have no value, and their records say `abstained`
all the same, so that too much abstention can be counted (`over-abstains`).

When it helps: a model that was tuned to answer tends to answer always. Source: Rajpurkar et al. 2018, "Know what you
don't know: unanswerable questions for SQuAD".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import ABSTENTIONS, abstained, gold_answers, pairs


class Abstains(Metric, name="abstains", version=2):
    """Share of unanswerable questions that are not answered."""

    phrases: tuple[str, ...] = Field(ABSTENTIONS, description="an answer that begins with one of these abstains")

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` 1.0 or 0.0, None for whatever has an answer; `abstained` says it of every question."""
        records = []
        for example, prediction in pairs(examples, predictions):
            asked = example.task == "qa"
            silent = asked and abstained(prediction.text, self.phrases)
            value = float(silent) if asked and not gold_answers(example) else None
            records.append({"id": example.id, "value": value, "abstained": silent})
        return records
