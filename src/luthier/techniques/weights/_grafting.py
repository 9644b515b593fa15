"""Optimising the mask of a graft: S <- S - rate · (1 - 2 γ_0) σ'(S - 10) ∂L/∂θ (θ_ft - θ_pre)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from luthier.techniques.weights._rows import Asked, merged_weights, read_pairs

if TYPE_CHECKING:
    from luthier.core.rng import Rng
    from luthier.core.step import Ctx
    from luthier.techniques.weights.graft import Graft

Tensors = dict[str, torch.Tensor]
BIAS = 10.0
HELD_OUT = 5  # every fifth row


def relaxed(start: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """γ(S) in [0, 1] from the first mask (0 and 1) and S, of one shape."""
    moved = torch.sigmoid(s - BIAS)
    return start * (1 - moved) + (1 - start) * moved


def slope(start: torch.Tensor, s: torch.Tensor, gradient: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """∂L/∂S from ∂L/∂θ at θ(γ(S)) and the change θ_ft - θ_pre."""
    moved = torch.sigmoid(s - BIAS)
    return (1 - 2 * start) * moved * (1 - moved) * gradient * change


def optimised(before: Mapping[str, torch.Tensor], change: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor],
              gradients: Callable[[Tensors, int], Tensors], loss: Callable[[Tensors], float], steps: int, rate: float, rng: Rng,
              progress: Callable[[int, int], None] = lambda done, total: None) -> Tensors:
    """The best rounded mask (truths) of all steps by `loss`, the start among them.

    gradients: ∂L/∂θ at given weights, by name, for the step of this number. loss: of given weights on held-out rows.
    """
    s = {n: torch.from_numpy(rng("graft", n).random(tuple(t.shape), dtype="float32")) for n, t in change.items()}

    def weights(mask: Mapping[str, torch.Tensor]) -> Tensors:
        return {n: before[n] + mask[n] * change[n] for n in change}

    kept: Tensors = {n: start[n].bool() for n in change}
    best = loss(weights({n: m.float() for n, m in kept.items()}))
    for step in range(steps):
        found = gradients(weights({n: relaxed(start[n], s[n]) for n in change}), step)
        for n in change:
            s[n] -= rate * slope(start[n], s[n], found[n], change[n])
        rounded = {n: relaxed(start[n], s[n]) > 0.5 for n in change}
        if (now := loss(weights({n: m.float() for n, m in rounded.items()}))) < best:
            best, kept = now, rounded
        progress(step + 1, steps)
    return kept


def localised(rule: Graft, ctx: Ctx, chosen: Tensors) -> Tensors:
    """The entries that the optimised mask chooses, in the form of `chosen`."""
    tuned, base = merged_weights(ctx.roles["model"]), ctx.roles["base"]
    own: dict[str, Any] = {n: p for n, p in base.module.named_parameters() if n in tuned and n in _considered(ctx)}
    before = {n: p.detach().clone() for n, p in own.items()}
    change = {n: tuned[n] - before[n] for n in own}
    start = {n: torch.zeros_like(t) for n, t in change.items()}
    for n, places in chosen.items():
        start[n].view(-1)[places] = 1.0
    rows = read_pairs(rule.data, "graft", "data")

    def asked(examples: Any) -> Asked:
        return Asked(base, examples, rule.objective, ctx.rng, rule.rows, rule.max_tokens)

    learned, held = asked([r for i, r in enumerate(rows) if i % HELD_OUT]), asked(rows[::HELD_OUT])

    def fill(weights: Tensors) -> None:
        for n, p in own.items():
            p.data.copy_(weights[n])

    def gradients(weights: Tensors, step: int) -> Tensors:
        fill(weights)
        for p in own.values():
            p.requires_grad_(True)
            p.grad = None
        drawn = ctx.rng("graft-batches", step).permutation(len(learned.batches))[:rule.batches]
        for number in drawn:
            (learned.loss(learned.batches[number]) / len(drawn)).backward()  # type: ignore[no-untyped-call]
        return {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in own.items()}

    def loss(weights: Tensors) -> float:
        fill(weights)
        with torch.no_grad():
            return float(sum(float(held.loss(b)) for b in held.batches) / len(held.batches))

    mask = optimised(before, change, start, gradients, loss, rule.steps, rule.rate, ctx.rng,
                     lambda done, total: ctx.progress(done, total, "steps of the mask"))
    found = {n: (m & (change[n] != 0)).reshape(-1).nonzero()[:, 0] for n, m in mask.items()}
    return {n: places for n, places in found.items() if len(places)}


def _considered(ctx: Ctx) -> set[str]:
    from luthier.techniques.weights._shared import numbered

    return {group[0] for group, _ in ctx.stream("weights") if numbered(group[0])}
