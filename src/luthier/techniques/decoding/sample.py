"""Sampling: a token in proportion to softmax(scores / temperature), among the most probable ones.

Each item has its own numbers, a function of the seed, the item and the position, so an answer does not depend on the
batch it was made in. Nucleus sampling: Holtzman et al. 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from luthier.core.kinds import Decoder

if TYPE_CHECKING:
    import torch


class Sample(Decoder, name="sample"):
    """Sample with temperature and top-p."""

    temperature: float = Field(0.7, gt=0, description="below 1 sharper, above 1 flatter")
    top_p: float = Field(0.95, gt=0, le=1, description="only the most probable tokens that hold this share")

    def scores(self, states: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return states["policy"] / self.temperature

    def choose(self, scores: torch.Tensor, rngs: Sequence[Callable[[], float]]) -> torch.Tensor:
        import torch

        probabilities, order = scores.softmax(-1).sort(dim=-1, descending=True, stable=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= self.top_p, 0)
        reached = probabilities.cumsum(-1) / probabilities.sum(-1, keepdim=True)
        drawn = torch.tensor([r() for r in rngs], device=scores.device)[:, None]
        place = (reached <= drawn).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
        return order.gather(1, place)[:, 0]
