"""exact-match: 1 when an answer equals one of the acceptable answers after SQuAD's normalisation, else 0.

EM = max over answers g of [normalise(prediction) = normalise(g)]; lower case, punctuation, the articles a, an, the
and repeated white space don't count. Questions without an answer have no value here: `abstains` judges those.

When it helps: short answers with one right wording. Source: Rajpurkar et al. 2016, "SQuAD: 100,000+ questions for
machine comprehension of text"; evaluation script of SQuAD 2.0 (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import gold_answers, normalise, pairs


class ExactMatch(Metric, name="exact-match"):
    """Share of answers that equal an acceptable answer after SQuAD's normalisation."""

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` 1.0 or 0.0; None for a question without an answer."""
        return [{"id": e.id, "value": _best(p.text, gold_answers(e))} for e, p in pairs(examples, predictions)]


def _best(text: str, answers: Sequence[str]) -> float | None:
    said = normalise(text)
    return max((float(said == normalise(a)) for a in answers), default=None)
