"""Spectra of weights: what tuning did to the singular values and vectors of each matrix.

A matrix W [out, in] is read in float32 as it computes: an adapter is merged into it first, W = W0 + ΔW. Singular vectors
come from the thin decomposition, so U is [out, r], S [r] falling and V [in, r] with r = min(out, in).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError

if TYPE_CHECKING:
    from luthier.engine.workshop import Engine

Side = Literal["left", "right", "both"]


@dataclass(frozen=True)
class Spectrum:
    """Thin singular value decomposition of one matrix: `left` [out, r], `values` [r] falling, `right` [in, r]."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor) -> Spectrum:
        """In float32. Raises ValueError for numbers that are not finite."""
        if not torch.isfinite(weight).all():
            raise ValueError("it holds numbers that are not finite")
        u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
        return cls(u, s, vh.T)

    def similarity(self, base: Spectrum, k: int, side: Side = "left") -> torch.Tensor:
        """[k] m_j = max_i |u0_i . u_j| of the k leading vectors over all vectors i of the base; `both`: the smaller side's."""
        sides = [(self.left, base.left)] if side != "right" else []
        sides += [(self.right, base.right)] if side != "left" else []
        found = [(old.T @ new[:, :k]).abs().amax(0) for new, old in sides]
        return torch.stack(found).amin(0).clamp(max=1.0)

    def part(self, chosen: torch.Tensor) -> torch.Tensor:
        """[out, in] sum of s_j u_j v_j^T over the chosen numbers j."""
        return (self.left[:, chosen] * self.values[chosen]) @ self.right[:, chosen].T


def rescaled(weight: torch.Tensor, spectrum: Spectrum, chosen: torch.Tensor, factor: float) -> torch.Tensor:
    """W + (factor - 1) sum of s_j u_j v_j^T over the chosen j, in the format of W; W itself where that changes nothing."""
    if factor == 1 or not len(chosen):
        return weight
    return (weight.float() + (factor - 1) * spectrum.part(chosen)).to(weight.dtype)


def energy_rank(values: torch.Tensor, energy: float = 0.9) -> int:
    """Smallest k with s_1² + … + s_k² >= energy x all of it; 0 for a change of nothing. `values` [r] fall."""
    squares = values.double().square()
    total = squares.sum()
    return int((squares.cumsum(0) < energy * total * (1 - 1e-12)).sum()) + 1 if total > 0 else 0


def numeric_rank(delta: torch.Tensor, scale: float) -> int:
    """Singular values above what rounding alone leaves: max(out, in) x float32's step x `scale`, the largest one of W."""
    return int((torch.linalg.svdvals(delta.float()) > max(delta.shape) * torch.finfo(torch.float32).eps * scale).sum())


def effective_rank(values: torch.Tensor) -> float:
    """exp of the entropy of the singular values divided by their sum (Roy & Vetterli 2007); 0 for a change of nothing."""
    total = float(values.double().sum())
    if total <= 0:
        return 0.0
    shares = values.double() / total
    shares = shares[shares > 0]
    return math.exp(float(-(shares * shares.log()).sum()))


def gaussian_share(rows: int, columns: int, energy: float = 0.9, points: int = 20_000) -> float:
    """Energy rank / r of a random matrix of independent equal Gaussians, by the Marchenko-Pastur law.

    With q = min / max of the sides, squared singular values have density sqrt((b - x)(x - a)) / (2 pi q x) on [a, b],
    a, b = (1 ∓ sqrt q)². The largest ones that hold `energy` of the mean 1 are this share of all.
    """
    q = min(rows, columns) / max(rows, columns)
    a, b = (1 - math.sqrt(q)) ** 2, (1 + math.sqrt(q)) ** 2
    # x = middle - half cos t takes the square root's infinite slopes out of the ends: even steps of t then do.
    t = (torch.arange(points, dtype=torch.float64) + 0.5) * math.pi / points
    half = (b - a) / 2
    x = (a + b) / 2 + half * torch.cos(t)  # falling
    mass = (half * torch.sin(t)).square() / (2 * math.pi * q * x) * (math.pi / points)
    held = (mass * x).cumsum(0)
    return float(mass[held < energy * held[-1]].sum() / mass.sum())


def matrices(engine: Engine, base: Artifact, tuned: Artifact | None = None) -> dict[str, torch.Tensor]:
    """Weights [out, in] of all linear layers by name, float32, adapters merged; shared ones once, the vocabulary left out.

    Raises:
        UserError: a base in 4 bits, or a tuned model that has no weights of its own (a learned prompt).
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from luthier.engine.models import add_tuned

    if base.meta.get("quantize", "none") != "none":
        raise UserError(f"{base.meta['name']} is held in 4 bits, whose rounding hides what tuning changed. "
                        "Name the base without quantize.")
    model = engine.fresh(base, torch.float32)
    module = add_tuned(model, tuned).module if tuned is not None else model.module
    if hasattr(module, "peft_config"):
        if any(c.is_prompt_learning for c in module.peft_config.values()):
            raise UserError("The tuned model learned a prompt: it changes no weight matrix.")
        module = module.merge_and_unload()
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    seen: set[int] = set()
    found: dict[str, torch.Tensor] = {}
    for name, layer in module.named_modules():
        if layer is head or not isinstance(layer, (nn.Linear, Conv1D)) or layer.weight.data_ptr() in seen:
            continue
        seen.add(layer.weight.data_ptr())
        weight = layer.weight.detach()
        found[name] = weight.T if isinstance(layer, Conv1D) else weight
    return found
