"""f1: overlap of the words of an answer with those of the nearest acceptable answer, as SQuAD measures it.

With bags of normalised words P of the prediction and G of an answer, and c = |P ∩ G| counted with repetition:
precision = c / |P|, recall = c / |G|, F1 = 2 · precision · recall / (precision + recall) = 2c / (|P| + |G|); the
largest over the acceptable answers. Questions without an answer have no value here: `abstains` judges those.

Letters of scripts that write no spaces count as words.

When it helps: answers of a few words that may be worded in several ways. Source: Rajpurkar et al. 2016, "SQuAD:
100,000+ questions for machine comprehension of text"; evaluation script of SQuAD 2.0 (2018).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import bag, gold_answers, pairs


class F1(Metric, name="f1", seeds=[49]):
    """Mean word overlap with the nearest acceptable answer, by SQuAD's definition."""

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` in [0, 1]; None for a question without an answer."""
        return [{"id": e.id, "value": max((overlap(p.text, a) for a in gold_answers(e)), default=None)}
                for e, p in pairs(examples, predictions)]


def overlap(text: str, answer: str) -> float:
    """F1 of the bags of normalised words; 0 when one of the two has none."""
    said, wanted = Counter(bag(text)), Counter(bag(answer))
    common = (said & wanted).total()
    return 2 * common / (said.total() + wanted.total()) if common else 0.0
