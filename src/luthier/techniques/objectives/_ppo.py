"""What policy-gradient objectives share: rewards of tokens, advantages, clipped losses, and the weight of the KL term.

An answer has tokens 1 … T; numbers of it are lists of T numbers, or tensors over the tokens of several answers. Sources:
Schulman et al. 2016 (generalised advantages) and 2017 (PPO), Ziegler et al. 2019 (KL reward, adaptive weight).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Steps of the controller: how far a KL may be from its target to count, and over how many answers the weight doubles or so.
FARTHEST, HORIZON = 0.2, 10_000


def token_rewards(policy: Sequence[float], reference: Sequence[float], score: float, beta: float) -> list[float]:
    """-beta (log π - log ρ) for each token; the last has the score of the answer added."""
    found = [-beta * (p - r) for p, r in zip(policy, reference, strict=True)]
    return [*found[:-1], found[-1] + score]


def advantages(rewards: Sequence[float], values: Sequence[float], gamma: float, smoothing: float) -> list[float]:
    """A_t = d_t + gamma smoothing A_{t+1} with d_t = r_t + gamma V_{t+1} - V_t, and nothing after the last token."""
    found, later, following = [0.0] * len(rewards), 0.0, 0.0
    for t in reversed(range(len(rewards))):
        later = rewards[t] + gamma * following - values[t] + gamma * smoothing * later
        found[t], following = later, values[t]
    return found


def whitened(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """All numbers together brought to mean 0 and (unbiased) variance 1; those of a single number to 0."""
    every = [value for row in rows for value in row]
    mean = sum(every) / len(every)
    spread = sum((value - mean) ** 2 for value in every) / max(1, len(every) - 1)
    return [[(value - mean) / (spread + 1e-8) ** 0.5 for value in row] for row in rows]


def policy_loss(log_ratio: torch.Tensor, advantage: torch.Tensor, clip: float) -> torch.Tensor:
    """[tokens] max(-A ρ, -A clip(ρ, 1 - clip, 1 + clip)) with ρ = π / π_old, from log ρ."""
    import torch

    ratio = log_ratio.exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def value_loss(value: torch.Tensor, before: torch.Tensor, wanted: torch.Tensor, clip: float) -> torch.Tensor:
    """[tokens] max((V - R)², (clip(V, V_old - clip, V_old + clip) - R)²) / 2."""
    import torch

    near = torch.minimum(torch.maximum(value, before - clip), before + clip)
    return torch.maximum((value - wanted).square(), (near - wanted).square()) / 2


def next_beta(beta: float, kl: float, target: float, answers: int) -> float:
    """The weight of the KL term after a round of so many answers whose KL, summed over their tokens, was `kl` on average."""
    error = min(max(kl / target - 1, -FARTHEST), FARTHEST)
    return beta * (1 + error * answers / HORIZON)
