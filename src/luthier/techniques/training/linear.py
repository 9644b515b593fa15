"""Linear schedule: up from 0 during the warm-up, then down to `end` at the last step."""

from __future__ import annotations

from pydantic import Field

from luthier.core.kinds import Schedule


class Linear(Schedule, name="linear"):
    """Linear warm-up, then linear decay."""

    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps spent warming up")
    end: float = Field(0.0, ge=0, le=1, description="factor at the last step")

    def factor(self, step: int, steps: int) -> float:
        rising = int(self.warmup * steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        return 1 - (1 - self.end) * (step - rising) / max(1, steps - rising)
