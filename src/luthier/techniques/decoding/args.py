"""ARGS: the next token by its log-probability and the reward of the text so far, max l(z) + r(s, z) / alpha.

No roll-outs, so one reward a candidate; a reward that only finished texts deserve says little of a beginning. Source:
Khanov et al. 2024, "ARGS: Alignment as Reward-Guided Search"; here as the baseline of `transfer-q-star`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.core.rng import Rng
from luthier.techniques.decoding._guided import Begun, Guided

if TYPE_CHECKING:
    from luthier.engine.lookout import Lookout


class Args(Guided, name="args"):
    """Choose tokens by the reward of the text so far."""

    def values(self, look: Lookout, prompts: Sequence[Sequence[int]], begun: Sequence[Begun], rngs: Sequence[Rng]
               ) -> list[float]:
        return look.worth(self.reward, [prompts[i] for i, _ in begun], [answer for _, answer in begun])
