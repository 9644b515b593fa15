"""Entropic optimal transport in the log domain, the cost computed in chunks of points: no [N, M] table is kept.

    f_i = -eps log sum_j b_j exp((g_j - C_ij) / eps)      g_j = -eps log sum_i a_i exp((f_i - C_ij) / eps)

C_ij = ||x_i - y_j||², a and b the weights of both sides. The first formula gives f at any point from g alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CHUNK = 2000  # points of one side at once


@dataclass(frozen=True)
class Plan:
    """Potentials f [N] and g [M], float64, how far the first side's weights are from right, and after how many rounds."""

    f: torch.Tensor
    g: torch.Tensor
    error: float
    rounds: int
    converged: bool


def soft(x: torch.Tensor, y: torch.Tensor, g: torch.Tensor, b: torch.Tensor, eps: float) -> torch.Tensor:
    """[N] the potential at points x [N, d] from that of y [M, d] with weights b: the soft c-transform."""
    import torch

    def part(points: torch.Tensor) -> torch.Tensor:
        return -eps * torch.logsumexp(b.log() + (g - cost(points, y)) / eps, 1)

    return torch.cat([part(points) for points in x.split(CHUNK)])


def cost(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """[N, M] squared distances."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)


def solve(x: torch.Tensor, y: torch.Tensor, eps: float, a: torch.Tensor | None = None, b: torch.Tensor | None = None, *,
          tolerance: float = 1e-3, most: int = 1000, momentum: float = 1.0) -> Plan:
    """Sinkhorn's rounds until the total error of the first side's weights is at most `tolerance`, or `most` of them.

    momentum: 1 is Sinkhorn's own step, up to 2 goes beyond it (over-relaxation).
    """
    import torch

    x, y = x.double(), y.double()
    a = torch.full((len(x),), 1 / len(x), dtype=torch.float64) if a is None else a.double()
    b = torch.full((len(y),), 1 / len(y), dtype=torch.float64) if b is None else b.double()
    f, g, error, done = torch.zeros_like(a), torch.zeros_like(b), float("inf"), 0
    for done in range(1, most + 1):
        new = soft(x, y, g, b, eps)
        # With g fixed, the rows of the plan sum to a exp((f - new) / eps): the error of f as it is.
        error = float((a * ((f - new) / eps).exp() - a).abs().sum()) if done > 1 else float("inf")
        if error <= tolerance:
            break
        f = f + momentum * (new - f)
        g = g + momentum * (soft(y, x, f, a, eps) - g)
    return Plan(soft(x, y, g, b, eps), g, error, done, error <= tolerance)
