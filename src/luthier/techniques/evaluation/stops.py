"""stops: share of answers that the model ended by itself, instead of being cut off at the limit.

stops = mean over predictions of [the model wrote its stop token, or the line end that stands for it].

When it helps: a model that has not learned to stop rambles after a right answer; training with the stop token masked
does that without any noise in the loss. Source: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import pairs


class Stops(Metric, name="stops"):
    """Share of answers that ended by themselves."""

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` 1.0 or 0.0; None for a prediction that is a label and not a text."""
        return [{"id": e.id, "value": None if p.label is not None else float(p.stopped)}
                for e, p in pairs(examples, predictions)]
