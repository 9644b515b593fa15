"""over-abstains: share of the questions with an answer to which the model says that it has none; lower is better.

A prediction abstains as in `abstains`: it is empty, or its normalised words begin with those of one of `phrases`. An
answer that equals an acceptable answer is none ("unknown" may be right). The mean is over question-answer examples that
have an answer.

When it helps: beside `abstains`, which a model that never answers would win. Source: Rajpurkar et al. 2018, "Know what
you don't know: unanswerable questions for SQuAD".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import ABSTENTIONS, abstained, gold_answers, normalise, pairs


class OverAbstains(Metric, name="over-abstains", version=2):
    """Share of answerable questions that are not answered."""

    higher_is_better: ClassVar[bool] = False
    phrases: tuple[str, ...] = Field(ABSTENTIONS, description="an answer that begins with one of these abstains")

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` 1.0 or 0.0, None for whatever has no answer; `abstained` says it of every question."""
        records = []
        for example, prediction in pairs(examples, predictions):
            asked, answers = example.task == "qa", gold_answers(example)
            right = normalise(prediction.text) in map(normalise, answers)
            silent = asked and abstained(prediction.text, self.phrases) and not right
            value = float(silent) if asked and answers else None
            records.append({"id": example.id, "value": value, "abstained": silent})
        return records
