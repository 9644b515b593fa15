"""Norm tuning: only the weights and biases of the normalisation layers move, or the entries of them that matter.

    F_i = 1/N sum_n (d log p(y_n | x_n) / d theta_i)^2   over training rows, for every entry i of the norms

With `subset` below 1 a first phase tunes all norms; the entries with the largest F are kept, everything begins again, and a
second phase moves these entries alone. F is taken at the tuned norms or at those of the base, with the head that the first
phase has trained: the gradients of an untrained head carry no task. The planned steps hold both phases.

When it helps: the smallest artifacts (0.03 % of an encoder). The rest of the model must be held in float and keeps its weights.
Source: ValizadehAslani & Liang 2024, arXiv 2403.20284 (seed 39).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Default, Hook
from luthier.core.step import FitCtx
from luthier.techniques.methods._selective import Retrain, Selective, Tensors, norms

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


class LayerNorm(Selective, name="layernorm", seeds=[39]):
    """Train the normalisation layers only; leaves the tensors, or entries, that moved."""

    sought: ClassVar[tuple[str, str]] = ("norm", "normalisation layers with weights (LayerNorm, RMSNorm or the like)")
    subset: float = Field(1.0, gt=0, le=1, description="share of the norms' entries that move")
    rank: Literal["fisher", "random", "bottom"] = Field("fisher", description="which entries: the largest Fisher information, "
                                                                              "drawn ones, or the smallest")
    at: Literal["tuned", "init"] = Field("tuned", description="where the Fisher information is taken: at the tuned norms of "
                                                              "the first phase, or at the base's, with the trained head")
    first_share: float = Field(0.5, gt=0, lt=1, description="share of the planned steps for the first phase, where subset < 1")
    fisher_rows: int = Field(256, ge=1, description="most rows that the Fisher information is averaged over")

    def found(self, model: Model) -> dict[str, torch.nn.Parameter]:
        return {f"{n}.{part}": p for n, m in norms(model).items() for part, p in m.named_parameters(recurse=False)}

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        if self.subset == 1:
            return Hook()
        chosen = self.chosen(model)
        total = sum(p.numel() for p in chosen.values())
        count = round(self.subset * total)
        if not count:
            raise UserError(f"layernorm: subset = {self.subset:g} of {total} entries keeps none; "
                            f"take at least {1 / total:.2g}.")
        return Retrain("layernorm", model, ctx, list(chosen), count, self.first_share, self._scores)

    def finish(self, model: Model, hook: Hook) -> None:
        if isinstance(hook, Retrain):
            hook.settle()

    def _scores(self, hook: Retrain) -> Tensors:
        import torch

        if self.rank == "random":
            rng = hook.ctx.rng("layernorm")
            return {n: torch.from_numpy(rng.random(p.shape)) for n, p in hook.begin.items()}
        if self.at == "init":
            hook.rewind()
        sign = -1 if self.rank == "bottom" else 1
        return {n: sign * f for n, f in fisher(hook, self.fisher_rows).items()}

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(1e-3, "house default for few weights (as bitfit); sweep it on dev")}


def fisher(hook: Retrain, most: int) -> dict[str, torch.Tensor]:
    """Diagonal of the empirical Fisher information of the hook's weights, over at most `most` training rows."""
    import torch

    from luthier.engine.layers import evaluating

    rows, closure = hook.ctx.rows, hook.ctx.closure
    assert rows is not None and closure is not None
    # The order in which gradients are handed over: the weights of the model, then the heads.
    names = [n for n, p in hook.model.module.named_parameters() if p.requires_grad]
    total = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in hook.weights.items()}
    places = hook.ctx.rng("fisher").permutation(len(rows))[:most]
    with evaluating(list(hook.model.module.modules())):
        for place in places:
            batch = rows.batch([int(place)])
            found: list[torch.Tensor] = []
            closure([batch], into=found)
            units = sum(rows.task.objective.count(batch).values())  # the closure divides by them, log p does not
            for name, gradient in zip(names, found, strict=False):
                if name in total:
                    total[name] += (units * gradient).square()
    return {n: t / len(places) for n, t in total.items()}
