"""k-precision-pp: K-precision of the words that the question did not already hold.

Words of the prediction that occur in the question or in the turns before it are taken out first; with bags P' of the rest and
K of all passages shown: K-precision++ = |P' ∩ K| / |P'|. Nothing left is 1: nothing was added. An empty answer has 0, an answer
that was shown no passage has no value.

When it helps: answers that repeat their question. Source: Adlakha et al. 2023 (seed 49).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._overlap import heard, precision, without
from luthier.techniques.evaluation._shared import bag, pairs


class KPrecisionPlus(Metric, name="k-precision-pp", seeds=[49]):
    """Share of the words that an answer adds to its question that stand in the passages shown."""

    unit: ClassVar[str] = "share of words"

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` in [0, 1] or None, with the words `added`."""
        records: list[dict[str, Any]] = []
        for example, prediction in pairs(examples, predictions):
            added = without(prediction.text, heard(example))
            value = None if not prediction.shown else 0.0 if not bag(prediction.text) else \
                precision(added, " ".join(prediction.shown)) if added else 1.0
            records.append({"id": example.id, "value": value, "added": added})
        return records
