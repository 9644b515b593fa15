"""Controlled decoding: token values from the roll-outs of the model itself, E_{τ ~ π(· | s, z)} r(s, z, τ).

What the model would go on to say is not what the best model would: the values are those of the untuned policy. Source:
Mudgal et al. 2024, "Controlled Decoding from Language Models", with roll-outs in place of a learned prefix scorer; here as
the baseline of `transfer-q-star`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from luthier.core.rng import Rng
from luthier.techniques.decoding._guided import Begun, Guided, rolled_out

if TYPE_CHECKING:
    from luthier.engine.lookout import Lookout


class ControlledDecoding(Guided, name="controlled-decoding"):
    """Choose tokens by the reward of what the model itself makes of them."""

    horizon: int = Field(20, ge=1, description="most tokens of a roll-out")
    rollouts: int = Field(1, ge=1, description="roll-outs of a candidate; one is greedy, several are sampled")

    def values(self, look: Lookout, prompts: Sequence[Sequence[int]], begun: Sequence[Begun], rngs: Sequence[Rng]
               ) -> list[float]:
        whole = rolled_out(look, "policy", prompts, begun, self.horizon, rngs, self.rollouts)
        asked = [prompts[i] for (i, _), some in zip(begun, whole, strict=True) for _ in some]
        worth = look.worth(self.reward, asked, [answer for some in whole for answer in some])
        return [sum(worth[at:at + self.rollouts]) / self.rollouts for at in range(0, len(worth), self.rollouts)]
