"""halving: the learning rate is halved after every share of the planned steps."""

from pydantic import Field

from luthier.core.kinds import Schedule


class Halving(Schedule, name="halving", version=1):
    """Half as large after each share of the steps."""

    every: float = Field(0.2, gt=0, le=1, description="share of the planned steps after which the rate is halved")

    def factor(self, step: int, steps: int) -> float:
        return 0.5 ** int(step / (self.every * steps))
