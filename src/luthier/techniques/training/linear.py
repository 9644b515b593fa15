"""Linear schedule: up from 0 during the warm-up, then down to `end` at the last step."""

from __future__ import annotations

from pydantic import Field

from luthier.core.kinds import Schedule
from luthier.techniques.training._shared import phases


class Linear(Schedule, name="linear"):
    """Linear warm-up, then linear decay."""

    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps spent warming up")
    end: float = Field(0.0, ge=0, le=1, description="factor at the last step")

    def factor(self, step: int, steps: int) -> float:
        rise, progress = phases(step, steps, self.warmup)
        return rise * (1 - (1 - self.end) * progress)
