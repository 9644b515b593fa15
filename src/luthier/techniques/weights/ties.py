"""ties: trim, elect sign, merge: W = W0 + scale · sum_i a_i T_i m_i / n, T_i the largest `density` of |W_i - W0| by tensor.

m_i is 1 where a_i T_i has the sign of sum_i a_i T_i and else 0; n = sum_i a_i m_i, so that an entry that one model alone
changes keeps its size. When it helps: tunes of one base that pull single weights in opposite directions. Source: Yadav et
al. 2023, "TIES-merging", section 3 and algorithm 1 (which trims each model as a whole; by tensor, as common tools do, here).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from luthier.techniques.weights._shared import TaskVectors, at_of, check_count

if TYPE_CHECKING:
    import torch


class Ties(TaskVectors, name="ties"):
    """Small changes dropped, signs elected, the rest averaged among those that agree."""

    normalize: bool = Field(True, description="divide by the sum of the numbers that took part")
    density: tuple[float, ...] = Field((0.2,), description="share of each change that is kept, from 0 to 1; a number for each "
                                                           "model or one for all")

    def check(self, models: int) -> None:
        super().check(models)
        check_count("ties", "density", self.density, models, share=True)

    @property
    def elects(self) -> bool:
        return True

    def thin(self, change: torch.Tensor, name: str, model: int, stats: Any) -> torch.Tensor:
        kept = max(1, int(at_of(self.density, model) * change.numel()))
        if kept >= change.numel():
            return change
        flat = change.reshape(-1)
        largest = flat.abs().topk(kept).indices
        return flat.new_zeros(flat.shape).index_copy_(0, largest, flat[largest]).reshape(change.shape)
