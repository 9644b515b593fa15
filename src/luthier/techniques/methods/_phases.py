"""A training in phases: estimate, choose, begin again. Each phase has an optimizer and a schedule of its own.

The phases share the planned steps, so that what is spent on estimating is charged.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from luthier.core.errors import UserError
from luthier.core.kinds import Hook
from luthier.core.step import FitCtx

if TYPE_CHECKING:
    from luthier.engine.models import Model


class Phases(Hook):
    """Calls `turn(i)` when phase i is over and another one follows; then the optimizer and the schedule begin anew."""

    def __init__(self, name: str, model: Model, ctx: FitCtx, shares: Sequence[float]) -> None:
        """`shares` of the planned steps, one a phase. Raises UserError where a phase would have no step."""
        assert ctx.clock is not None
        self.model, self.ctx, self.clock = model, ctx, ctx.clock
        steps = ctx.clock.steps
        self.ends = [round(steps * sum_ / sum(shares)) for sum_ in accumulate(shares)]
        if any(end <= start for start, end in zip([0, *self.ends], self.ends, strict=False)):
            raise UserError(f"{name}: {steps} steps are too few for {len(shares)} phases. Give more epochs or steps "
                            "(--set tuned.length={steps: N}).")
        self.clock.until = self.ends[0]

    @property
    def phase(self) -> int:
        """The phase of the step that is being made."""
        return self.ends.index(self.clock.until)

    def turn(self, phase: int) -> None:
        """Between two phases, with the weights that phase `phase` has left."""
        raise NotImplementedError

    def on_step(self) -> None:
        """The last step of a phase makes the next one begin."""
        done = self.clock.step + 1
        if done == self.clock.until < self.clock.steps:
            phase = self.phase
            self.turn(phase)
            assert self.ctx.rebuild_optimizer is not None
            self.ctx.rebuild_optimizer(False)
            self.clock.began, self.clock.until = done, self.ends[phase + 1]

    def state_dict(self) -> dict[str, Any]:
        """The clock knows the phase."""
        return {}
