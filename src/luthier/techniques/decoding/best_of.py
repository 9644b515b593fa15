"""best-of: the one of n sampled answers that is worth most; of equal ones the first.

When it helps: always the first thing to try where a reward exists, and the fair rival of decoders that weigh every token at
equal tokens. Source: Stiennon et al. 2020, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from luthier.core.component import Slot, build, named
from luthier.core.kinds import Decoder, Metric
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.lookout import Lookout


class BestOf(Decoder, name="best-of"):
    """Sample several answers and keep the one that a reward likes best."""

    reward: Slot[Metric] = Field(named("stops"), description="what an answer is worth, from its question and its text alone")
    n: int = Field(5, ge=1, description="answers to choose from")
    temperature: float = Field(1.0, gt=0, description="below 1 sharper, above 1 flatter")
    top_p: float = Field(1.0, gt=0, le=1, description="only the most probable tokens that hold this share")

    @property
    def searches(self) -> bool:
        return True

    def scores(self, states: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return states["policy"] / self.temperature

    def search(self, look: Lookout, prompts: Sequence[Sequence[int]], rngs: Sequence[Rng]) -> list[list[int]]:
        sample = build("decoder", {"use": "sample", "temperature": self.temperature, "top_p": self.top_p,
                                   "max_new_tokens": self.max_new_tokens})
        asked = [p for p in prompts for _ in range(self.n)]
        made = look.continued("policy", asked, sample, [r.within(f"answer/{k}") for r in rngs for k in range(self.n)],
                              [len(p) for p in asked])
        worth = look.worth(self.reward, asked, made)
        return [made[max(range(at, at + self.n), key=lambda k: (worth[k], -k))] for at in range(0, len(made), self.n)]
