"""Inverse square root schedule: factor = sqrt(hold / (hold + steps since the warm-up)).

The decay does not depend on the planned length and never reaches 0, so a training can go on. When it helps: training of
unknown length. Source: Vaswani et al. 2017, section 5.3; shifted as in T5X, so that the decay begins at 1.
"""

from __future__ import annotations

from pydantic import Field

from luthier.core.kinds import Schedule
from luthier.techniques.training._shared import phases


class InverseSqrt(Schedule, name="inverse-sqrt"):
    """Linear warm-up, then down with the square root of the step."""

    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps spent warming up")
    hold: int = Field(100, ge=1, description="steps after the warm-up at which the factor is sqrt(1/2)")

    def factor(self, step: int, steps: int) -> float:
        since = max(0, step - int(self.warmup * steps))
        return phases(step, steps, self.warmup)[0] * (self.hold / (self.hold + since)) ** 0.5
