"""Constant schedule: the learning rate never changes, after a linear warm-up if one is asked for."""

from __future__ import annotations

from pydantic import Field

from luthier.core.kinds import Schedule
from luthier.techniques.training._shared import phases


class Constant(Schedule, name="constant"):
    """The same learning rate at every step after the warm-up."""

    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps spent warming up")

    def factor(self, step: int, steps: int) -> float:
        return phases(step, steps, self.warmup)[0]
