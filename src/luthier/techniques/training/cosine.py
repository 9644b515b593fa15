"""Cosine schedule: factor = end + (1 - end) (1 + cos(π progress)) / 2 after a linear warm-up.

Slow at both ends of the decay. When it helps: training of a known length. Source: Loshchilov, Hutter 2017 (SGDR),
one period without restarts.
"""

from __future__ import annotations

import math

from pydantic import Field

from luthier.core.kinds import Schedule
from luthier.techniques.training._shared import phases


class Cosine(Schedule, name="cosine"):
    """Linear warm-up, then half a cosine down."""

    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps spent warming up")
    end: float = Field(0.0, ge=0, le=1, description="factor at the last step")

    def factor(self, step: int, steps: int) -> float:
        rise, progress = phases(step, steps, self.warmup)
        return rise * (self.end + (1 - self.end) * (1 + math.cos(math.pi * progress)) / 2)
