"""PPO: learn from the rewards of answers that the policy itself writes, close to a frozen reference.

A round samples an answer y to each of `rollouts` prompts. Token t is rewarded r_t = -beta (log π(y_t) - log ρ(y_t)), the
last one with the score of y on top. With values V from a head on the policy, generalised advantages A and returns R = A + V
are computed once; A is whitened over the round. The rows are then passed over `passes` times, minimising

    sum max(-A ratio, -A clip(ratio, 1 ± clip)) / tokens + value_weight sum max((V - R)², (clipped V - R)²) / 2 / tokens

with ratio = π / π_old. beta follows the KL to its target. How answers are written and rewarded: `_on_policy`.

When it helps: a reward can be computed (tests, a compiler, a verifier, a model of preferences) and right answers are not
rare. Sources: Schulman et al. 2017; Ziegler et al. 2019; Palit & Sharma 2024 for refactoring (seed 143), whose settings are
`passes=100`, `learning_rate=2.94e-5`, `rollouts=16`, `batch_rows=4`, 512 new tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Features
from luthier.techniques.objectives import _ppo
from luthier.techniques.objectives._on_policy import OnPolicy, as_written, asked, flat, tell

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rollouts import Round


class Ppo(OnPolicy, name="ppo", seeds=[143]):
    """Learn from the rewards of the policy's own answers, held to a reference."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {
        "policy": "additive", "value": "additive", "nll": "additive"}
    brings_head: ClassVar[str] = "value"
    rollouts: int = Field(32, ge=1, description="prompts of a round, one answer each")
    beta: float = Field(0.2, ge=0, description="how strongly the policy is held to the reference at first; reward per nat")
    target_kl: float | None = Field(6.0, gt=0, description="KL of an answer (nats) that beta is steered to; none keeps beta")
    gamma: float = Field(1.0, gt=0, le=1, description="what a reward one token later is worth")
    smoothing: float = Field(0.95, ge=0, le=1, description="lambda of the generalised advantages")
    clip: float = Field(0.2, gt=0, description="how far a ratio may leave 1, and a value its old one, to be learned from")
    value_weight: float = Field(0.1, ge=0, description="weight of the error of the values")

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        learned = batch["input"].learned
        return {"policy": learned, "value": learned} if "advantages" in batch else {"nll": learned}

    def coefficients(self) -> dict[str, float]:
        return {"value": self.value_weight}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Raises UserError where the task has no head of one output."""
        import torch

        if "advantages" not in batch:
            return {"nll": run("policy", batch["input"]).nll().sum()}
        with as_written(run):
            output = run("policy", batch["input"], layers=not run.splits["policy"])
            log_ratio, value = -output.nll() - flat(batch, "logs"), _values(run, output.predicting())
        policy = _ppo.policy_loss(log_ratio, flat(batch, "advantages"), self.clip)
        ratio = log_ratio.detach().exp()
        run.measure(ratio=ratio, clipped=((ratio - 1).abs() > self.clip).float())
        return {"policy": policy.sum(),
                "value": torch.sum(_ppo.value_loss(value, flat(batch, "values"), flat(batch, "returns"), self.clip))}

    def experience(self, given: Round) -> list[Features]:
        """Answers with their advantages, returns, and what policy and values said of them."""
        import torch

        rows, scores = self.answered(given)
        with torch.no_grad(), as_written(given.run):
            logs, values, reference = asked(given.run, rows, lambda batch: _said(given.run, batch))
        beta = given.memory.setdefault("beta", self.beta)
        rewards = [_ppo.token_rewards(*one, beta) for one in zip(logs, reference, scores, strict=True)]
        found = [_ppo.advantages(r, v, self.gamma, self.smoothing) for r, v in zip(rewards, values, strict=True)]
        returns = [[a + v for a, v in zip(*one, strict=True)] for one in zip(found, values, strict=True)]
        kls = [sum(p - r for p, r in zip(*one, strict=True)) for one in zip(logs, reference, strict=True)]
        tell(given.run, kl=kls, beta=[beta])
        if self.target_kl is not None:
            given.memory["beta"] = _ppo.next_beta(beta, sum(kls) / len(kls), self.target_kl, len(kls))
        return [{**row, "logs": tuple(p), "values": tuple(v), "advantages": tuple(a), "returns": tuple(r)}
                for row, p, v, a, r in zip(rows, logs, values, _ppo.whitened(found), returns, strict=True)]


def _values(run: Forward, states: torch.Tensor) -> torch.Tensor:
    """[tokens] values of states [tokens, width]."""
    if run.task not in run.models["policy"].heads:
        raise UserError("ppo needs a head of one output: tasks: [{objective: ppo, head: value}].")
    said = run.head(states).float()
    if said.shape[-1] != 1:
        raise UserError(f"ppo needs a head of one output; this one has {said.shape[-1]}. Take head: value.")
    return said[:, 0]


def _said(run: Forward, batch: Any) -> Sequence[torch.Tensor]:
    """Of the learned tokens: log π, value, log ρ."""
    output = run("policy", batch, layers=not run.splits["policy"])
    return -output.nll(), _values(run, output.predicting()), -run("reference", batch).nll()
