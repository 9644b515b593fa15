"""dare: drop and rescale. T_i = M_i (W_i - W0) / density with M_i ~ Bernoulli(density); W = W0 + scale · sum_i a_i T_i.

E[T_i] = W_i - W0. What is dropped is a function of (seed, tensor, model): the same whatever the order of work. `elect`
elects signs before the sum, as ties does. When it helps: many tunes of one base, whose changes are small and redundant.
Source: Yu et al. 2024, "Language models are super Mario", section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from luthier.core.rng import Rng
from luthier.techniques.weights._shared import TaskVectors, at_of, check_count

if TYPE_CHECKING:
    import torch

    from luthier.core.step import Ctx


class Dare(TaskVectors, name="dare"):
    """Most of each change dropped at random, the rest made larger."""

    density: tuple[float, ...] = Field((0.1,), description="share of each change that is kept, above 0 and up to 1; a number "
                                                           "for each model or one for all")
    rescale: bool = Field(True, description="divide what is kept by the density")
    elect: bool = Field(False, description="only changes with the elected sign take part")

    def check(self, models: int) -> None:
        super().check(models)
        check_count("dare", "density", self.density, models, share=True)

    def statistics(self, ctx: Ctx) -> Rng:
        """The generators of the masks."""
        return ctx.rng.within("dare")

    @property
    def elects(self) -> bool:
        return self.elect

    def thin(self, change: torch.Tensor, name: str, model: int, stats: Any) -> torch.Tensor:
        import torch

        share = at_of(self.density, model)
        if share == 1:
            return change
        drawn = stats("mask", f"{model}/{name}").random(change.numel(), dtype="float32") < share
        return change.mul_(torch.from_numpy(drawn).reshape(change.shape)).div_(share if self.rescale else 1.0)
