"""Elastic weight consolidation: weights that earlier tasks need are held where they are.

    loss + lambda / 2 sum over weights of F (w - u)²,   F = mean over rows of earlier tasks of (d -log p(row) / dw)²

u are the trained weights before the first step and F the diagonal of their empirical Fisher information, from rows of `data`
with their own answers; a row's loss is the objective's mean over that row. The rows of all earlier tasks are asked for at
these weights, so one anchor stands for all of them.

When it helps: a further task, rows of the earlier ones at hand, and no place for an adapter each. Source: Kirkpatrick et al.
2017, arXiv 1612.00796.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Hook, Regularizer
from luthier.core.step import FitCtx

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.models import Model

EARLIER = "earlier"


class Ewc(Regularizer, name="ewc"):
    """Hold weights by what earlier tasks need."""

    data: str = Field("examples.earlier", description="INPUT.SUBSET with rows of earlier tasks")
    weight: float = Field(100.0, ge=0, description="lambda")
    rows: int = Field(64, ge=1, description="rows that the Fisher information is estimated from, evenly spaced")

    def streams(self) -> dict[str, str]:
        return {EARLIER: self.data}

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        """Raises UserError where heads are trained, which earlier tasks do not share."""
        if model.heads:
            raise UserError(f"ewc holds weights that tasks share, and the head of {next(iter(model.heads))} belongs to one.")
        return Held(self.weight, model, fisher(model, ctx, self.rows))


def fisher(model: Model, ctx: FitCtx, count: int) -> list[torch.Tensor]:
    """One tensor a trained weight, in their order: the mean squared gradient of single rows."""
    assert ctx.rows is not None and ctx.closure is not None
    earlier = ctx.rows.of(EARLIER)
    places = [len(earlier) * i // min(count, len(earlier)) for i in range(min(count, len(earlier)))]
    training = model.module.training
    model.module.eval()
    found: list[torch.Tensor] = []
    for place in places:
        gradients: list[torch.Tensor] = []
        ctx.closure([earlier.batch([place])], task=earlier.task, into=gradients)
        squares = [g.float().square() / len(places) for g in gradients]
        found = [f + s for f, s in zip(found, squares, strict=True)] if found else squares
    model.module.train(training)
    return found


class Held(Hook):
    """Adds the part `ewc`."""

    def __init__(self, strength: float, model: Model, information: list[torch.Tensor]) -> None:
        trained = [p for p in model.module.parameters() if p.requires_grad]
        self.strength = strength
        self.held: list[tuple[Any, Any, Any]] = [
            (w, w.detach().float().clone(), f.to(w.device)) for w, f in zip(trained, information, strict=True)]

    def on_loss(self, run: Forward, batch: object, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        if not self.strength:
            return parts
        far = torch.stack([(f * (w.float() - u).square()).sum() for w, u, f in self.held]).sum()
        return {**parts, "ewc": self.strength / 2 * far}
