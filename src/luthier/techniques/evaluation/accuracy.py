"""accuracy: share of examples whose predicted label is the right one.

accuracy = mean over labelled examples of [predicted label = label]; labels are compared as text. An example without a
label has no value; a prediction without a label is wrong.

When it helps: classification with classes of similar size and cost. Source: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import pairs


class Accuracy(Metric, name="accuracy"):
    """Share of right labels."""

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` 1.0 or 0.0; None for an example without a label."""
        return [{"id": e.id, "value": None if e.label is None else float(p.label == str(e.label))}
                for e, p in pairs(examples, predictions)]
