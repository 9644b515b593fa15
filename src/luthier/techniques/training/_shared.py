"""What schedules share: the warm-up, and how far the decay after it has come."""

from __future__ import annotations


def phases(step: int, steps: int, warmup: float) -> tuple[float, float]:
    """(rise, progress) of `step` (from 0) of `steps`, the first `warmup` x `steps` of them rising.

    `rise` goes from just above 0, so that the first step moves something, to 1; `progress` is 0 until the warm-up is
    over, then grows evenly and would be 1 at `steps`.
    """
    rising = int(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1), 0.0
    return 1.0, (step - rising) / max(1, steps - rising)
