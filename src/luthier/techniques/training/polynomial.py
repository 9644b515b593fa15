"""Polynomial schedule: factor = end + (1 - end) (1 - progress)^power after a linear warm-up.

`power` 1 is the linear schedule. When it helps: large batches (`power` 2). Source: You et al. 2017 (LARS), section 4.
"""

from __future__ import annotations

from pydantic import Field

from luthier.core.kinds import Schedule
from luthier.techniques.training._shared import phases


class Polynomial(Schedule, name="polynomial"):
    """Linear warm-up, then down with a power of what is left."""

    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps spent warming up")
    end: float = Field(0.0, ge=0, le=1, description="factor at the last step")
    power: float = Field(2.0, gt=0, description="exponent of the share of the decay that is left")

    def factor(self, step: int, steps: int) -> float:
        rise, progress = phases(step, steps, self.warmup)
        return rise * (self.end + (1 - self.end) * (1 - progress) ** self.power)
