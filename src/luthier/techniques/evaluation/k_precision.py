"""k-precision: how much of an answer stands in the passages that the model was shown: is it faithful to them?

With bags of normalised words P of the prediction and K of all passages shown: K-precision = |P ∩ K| / |P|. `details` gives
K-recall = |P ∩ K| / |K| and K-F1 too. An empty answer has 0, an answer that was shown no passage has no value.

When it helps: answering from passages; of the lexical metrics it agrees best with people on faithfulness. A copied passage has
1 whatever it answers, a faithful paraphrase may have little. Source: Adlakha et al. 2023, "Evaluating correctness and
faithfulness of instruction-following models for question answering" (seed 49).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._overlap import precision, recall
from luthier.techniques.evaluation._shared import pairs


class KPrecision(Metric, name="k-precision", seeds=[49]):
    """Share of the answer's words that stand in the passages shown."""

    unit: ClassVar[str] = "share of words"

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` in [0, 1] or None, with `k_recall` and `k_f1`."""
        records: list[dict[str, Any]] = []
        for example, prediction in pairs(examples, predictions):
            if not prediction.shown:
                records.append({"id": example.id, "value": None})
                continue
            known = " ".join(prediction.shown)
            p, r = precision(prediction.text, known), recall(prediction.text, known)
            records.append({"id": example.id, "value": p, "k_recall": r, "k_f1": 2 * p * r / (p + r) if p + r else 0.0})
        return records

    def details(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Means of `k_recall` and `k_f1`."""
        known = [r for r in records if r["value"] is not None]
        return {name: sum(r[name] for r in known) / len(known) for name in ("k_recall", "k_f1")} if known else {}
