"""Constant schedule: the learning rate never changes."""

from __future__ import annotations

from luthier.core.kinds import Schedule


class Constant(Schedule, name="constant"):
    """The same learning rate at every step."""

    def factor(self, step: int, steps: int) -> float:
        return 1.0
