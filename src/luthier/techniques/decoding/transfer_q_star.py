"""Transfer Q*: token values from the roll-outs of a model that is aligned already.

With s the prompt and the tokens so far, the next one comes from

    π(z | s) ∝ π_ref(z | s) exp(Q(s, z) / alpha),    Q(s, z) = E_{τ ~ ρ(· | s, z)} r(s, z, τ)

over the `top_k` tokens of π_ref; ρ is the model `rollout`, tuned for r. Was it tuned for another reward r_BL, each roll-out
has the weight w = exp((r - r_BL) / beta) and Q = E[w r] / E[w] (the released code leaves the division out:
`normalised: false`). Where r_BL is unknown, `implicit` takes beta log(ρ / π) of the answer, π being the asked model.
π_ref is ρ itself, as in the released code, or the asked model (`reference: sft`).

When it helps: an aligned model and a reward exist, and answers may cost top_k x horizon tokens a token. `horizon: 0` rewards
the partial text, as `args` does. Source: Chakraborty et al. 2024, "Transfer Q Star: Principled Decoding for LLM Alignment"
(seed 179).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from luthier.core.component import Slot
from luthier.core.kinds import Metric
from luthier.core.rng import Rng
from luthier.techniques.decoding._guided import Begun, Guided, expected, rolled_out

if TYPE_CHECKING:
    from luthier.engine.lookout import Lookout


class TransferQStar(Guided, name="transfer-q-star", seeds=[179]):
    """Choose tokens by the reward of what an aligned model makes of them."""

    rollout: str = Field("rollout", description="the aligned model: an input, a run or a base")
    reference: Literal["rollout", "sft"] = Field("rollout", description="whose tokens are candidates; sft: the model asked")
    horizon: int = Field(20, ge=0, description="most tokens of a roll-out; 0 rewards the partial text")
    rollouts: int = Field(1, ge=1, description="roll-outs of a candidate; one is greedy, several are sampled")
    baseline_reward: Slot[Metric] | None = Field(None, description="what the aligned model was tuned for, where that is "
                                                                   "another reward")
    implicit: bool = Field(False, description="take beta log(rollout / asked model) for what it was tuned for")
    beta: float | None = Field(None, gt=0, description="KL weight with which it was tuned, where that was for another reward")
    normalised: bool = Field(True, description="divide by the mean weight of the roll-outs")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.baseline_reward is not None and self.implicit:
            raise ValueError("baseline_reward and implicit are two answers to what the aligned model was tuned for; give one")
        if (self.beta is not None) != (self.baseline_reward is not None or self.implicit):
            raise ValueError("what the aligned model was tuned for needs both beta, the KL weight of that tuning, and either "
                             "baseline_reward or implicit: true")
        return self

    def models(self) -> dict[str, str]:
        return {"rollout": self.rollout}

    @property
    def _speaker(self) -> str:
        return "rollout" if self.reference == "rollout" else "policy"

    def values(self, look: Lookout, prompts: Sequence[Sequence[int]], begun: Sequence[Begun], rngs: Sequence[Rng]
               ) -> list[float]:
        import torch

        whole = [[answer] for _, answer in begun]
        if self.horizon:
            whole = rolled_out(look, "rollout", prompts, begun, self.horizon, rngs, self.rollouts)
        asked = [prompts[i] for (i, _), some in zip(begun, whole, strict=True) for _ in some]
        flat = [answer for some in whole for answer in some]
        rewards = torch.tensor(look.worth(self.reward, asked, flat), dtype=torch.float64).view(len(begun), -1)
        weights = torch.zeros_like(rewards)
        if self.beta is not None:
            weights = (rewards - self._baseline(look, asked, flat).view_as(rewards)) / self.beta
        normalised = self.normalised or self.beta is None
        found: list[float] = expected(rewards, weights, normalised).tolist()
        return found

    def _baseline(self, look: Lookout, prompts: Sequence[Sequence[int]], answers: Sequence[list[int]]) -> Any:
        """What the aligned model was tuned for, of each answer."""
        import torch

        if self.baseline_reward is not None:
            return torch.tensor(look.worth(self.baseline_reward, prompts, answers), dtype=torch.float64)
        assert self.beta is not None
        said = [torch.stack([x.log_softmax(-1)[range(len(a)), a].sum().double() for x, a in zip(look.scores(
            role, [[*p, *a[:-1]] for p, a in zip(prompts, answers, strict=True)], [len(a) for a in answers],
            [len(p) for p in prompts]), answers, strict=True)]) for role in ("rollout", "policy")]
        return self.beta * (said[0] - said[1])
