"""WSD schedule: warm-up, stable, decay. The factor rises linearly, stays 1, then falls to `end` in the last part.

factor in the decay = end + (1 - end) s(q), q its progress, s = 1 - q (linear), (1 + cos πq)/2 (cosine) or 1 - sqrt(q).
When it helps: one long stable part can be branched into decays of several lengths. Source: Hu et al. 2024 (MiniCPM);
1 - sqrt: Hägele et al. 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import Field, model_validator

from luthier.core.kinds import Schedule
from luthier.techniques.training._shared import phases

SHAPES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda q: 1 - q,
    "cosine": lambda q: (1 + math.cos(math.pi * q)) / 2,
    "1-sqrt": lambda q: 1 - math.sqrt(q),
}


class Wsd(Schedule, name="wsd"):
    """Linear warm-up, a stable part, then a decay."""

    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps spent warming up")
    decay: float = Field(0.1, gt=0, le=1, description="share of the steps spent in the decay, the last ones")
    shape: Literal["linear", "cosine", "1-sqrt"] = Field("1-sqrt", description="how the factor falls in the decay")
    end: float = Field(0.0, ge=0, le=1, description="factor at the last step")

    @model_validator(mode="after")
    def _fits(self) -> Wsd:
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup + decay = {self.warmup + self.decay:g} is more than all steps")
        return self

    def factor(self, step: int, steps: int) -> float:
        falling = steps - int(self.decay * steps)
        fallen = max(0, step - falling) / max(1, steps - falling)
        return phases(step, steps, self.warmup)[0] * (self.end + (1 - self.end) * SHAPES[self.shape](fallen))
