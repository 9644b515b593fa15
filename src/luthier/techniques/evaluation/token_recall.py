"""token-recall: how much of the right answer an answer holds, however much else it says.

With bags of normalised words P of the prediction and G of an acceptable answer: recall = |P ∩ G| / |G|, counted with
repetition; the largest over the acceptable answers. Normalisation is SQuAD's. Questions without an answer have no value.

When it helps: models that answer in sentences; of the lexical metrics it agrees best with people on correctness. It is fooled
by "not X but Y". Source: Adlakha et al. 2023, "Evaluating correctness and faithfulness of instruction-following models for
question answering" (seed 49).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._overlap import recall
from luthier.techniques.evaluation._shared import gold_answers, pairs


class TokenRecall(Metric, name="token-recall", seeds=[49]):
    """Share of the right answer's words that the answer holds."""

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` in [0, 1]; None for a question without an answer."""
        return [{"id": e.id, "value": max((recall(p.text, a) for a in gold_answers(e)), default=None)}
                for e, p in pairs(examples, predictions)]
