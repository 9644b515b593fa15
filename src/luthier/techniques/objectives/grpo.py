"""GRPO: learn from which of several answers to the same prompt are worth more, close to a frozen reference.

A round samples `group` answers to each of `rollouts` prompts. An answer worth r has the advantage A = (r - mean) / (std + 1e-4)
within its group (`scale: none` leaves the division out), the same for each of its tokens. The rows are passed over `passes`
times, minimising

    mean over answers of mean over tokens of  max(-A ratio, -A clip(ratio, 1 ± clip)) + beta k3,   ratio = π / π_old

with k3 = ρ/π - log(ρ/π) - 1, an estimate of KL(π ‖ reference ρ) that is never negative. `average: token` takes one mean over
all tokens, so that long answers count for more. No head and no values are learned. How answers are written and rewarded:
`_on_policy`.

When it helps: as `ppo`, where several answers to a prompt are cheap and differ in worth; a group that does not differ teaches
nothing (`flat` is the share of such groups). Sources: Shao et al. 2024, "DeepSeekMath", section 4.1; `scale: none` with
`average: token` is near to Liu et al. 2025, "Understanding R1-Zero-Like Training". An alternative to `ppo` in seed 143.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.kinds import Features
from luthier.techniques.objectives import _ppo
from luthier.techniques.objectives._on_policy import OnPolicy, answer_lengths, as_written, asked, flat, tell

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rollouts import Round


class Grpo(OnPolicy, name="grpo", seeds=[143]):
    """Learn from which answers of a group are worth more."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {
        "policy": "additive", "kl": "additive", "nll": "additive"}
    rollouts: int = Field(8, ge=1, description="prompts of a round, `group` answers each")
    group: int = Field(8, ge=2, description="answers to a prompt, which are compared")
    passes: int = Field(1, ge=1, description="how often a round's answers are passed over")
    beta: float = Field(0.04, ge=0, description="weight of the KL to the reference")
    scale: Literal["group", "none"] = Field("group", description="whether advantages are divided by the spread of their group")
    average: Literal["answer", "token"] = Field("answer", description="whether each answer counts the same, or each token")

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        if "advantages" not in batch:
            return {"nll": batch["input"].learned}
        units = len(batch["advantages"]) if self.average == "answer" else batch["input"].learned
        return {"policy": units, "kl": units}

    def coefficients(self) -> dict[str, float]:
        return {"kl": self.beta}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        if "advantages" not in batch:
            return {"nll": run("policy", batch["input"]).nll().sum()}
        with as_written(run):
            logs = -run("policy", batch["input"]).nll()
        log_ratio, away = logs - flat(batch, "logs"), flat(batch, "reference") - logs
        ratio, estimate = log_ratio.detach().exp(), away.exp() - away - 1
        run.measure(ratio=ratio, clipped=((ratio - 1).abs() > self.clip).float(), k3=estimate.detach())
        lengths = answer_lengths(batch)
        weight = (1 / lengths).repeat_interleave(lengths) if self.average == "answer" else 1.0
        return {"policy": (weight * _ppo.policy_loss(log_ratio, flat(batch, "advantages"), self.clip)).sum(),
                "kl": (weight * estimate).sum()}

    def experience(self, given: Round) -> list[Features]:
        """Answers with their advantages, and what policy and reference said of them."""
        import torch

        run = given.run
        rows, scores = self.answered(given, self.group)
        with torch.no_grad(), as_written(run):
            logs, reference = asked(run, rows, lambda b: (-run("policy", b).nll(), -run("reference", b).nll()))
        groups = [scores[at:at + self.group] for at in range(0, len(scores), self.group)]
        tell(run, flat=[len(set(g)) == 1 for g in groups])
        found = [a for g in groups for a in compared(g, self.scale == "group")]
        return [{**row, "logs": tuple(p), "reference": tuple(r), "advantages": (a,) * len(p)}
                for row, p, r, a in zip(rows, logs, reference, found, strict=True)]


def compared(scores: Sequence[float], scaled: bool = True) -> list[float]:
    """Advantages of the answers of one group; `scaled` by the unbiased standard deviation."""
    mean = sum(scores) / len(scores)
    spread = (sum((s - mean) ** 2 for s in scores) / (len(scores) - 1)) ** 0.5
    return [(s - mean) / (spread + 1e-4 if scaled else 1.0) for s in scores]
