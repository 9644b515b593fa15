"""GOFT and qGOFT: a frozen weight times a rotation that few numbers hold.

    y = W (R' x),   R = P_1 P_2 ... P_ceil(log2 d),   P_r = Givens rotations of the pairs (i, i + 2^(r-1)), i = 0, 2^r, ..

d - 1 angles for a layer with d inputs, 0 at the start, applied in log2(d) sweeps without ever building R. Rotations keep
W's lengths and angles: (W R')(W R')' = W W'. qGOFT gives each pair a free map [[a1, b1], [a2, b2]], the identity at the start
(4 (d - 1) numbers), and adds `penalty` * sum (a1 b1 + a2 b2)^2 to the loss. One end of this fixed tree is free: R' turns any x
into |x| e_0, but not any vector into any other. Merged once, R costs nothing.

When it helps: adapters smaller than LoRA of rank 1. Source: Ma et al. 2024, arXiv 2404.04316 (seed 103).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Default, Hook, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._shared import targeted, wrap

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


class _Turning(Method):
    """What both share."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "adapter"
    quasi: ClassVar[bool]
    target: str | tuple[str, ...] = Field("all-linear", description="all-linear, attention-qv, or names of layers")
    scaling: bool = Field(False, description="learn a factor for each input of a layer besides")

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        """Raises UserError for a layer with one input, which nothing can turn."""
        from luthier.techniques.methods._givens import GivensConfig

        targets = targeted(self.info.name, model, self.target)
        flat = [n for n, (inputs, _) in targets.items() if inputs < 2]
        if flat:
            raise UserError(f"{self.info.name}: {flat[0]} has one input, and there is nothing to turn. Name other layers "
                            "(target).")
        return wrap(model, GivensConfig(target_modules=list(targets), quasi=self.quasi, scaling=self.scaling))

    def loadable(self) -> None:
        from luthier.techniques.methods import _givens  # noqa: F401  (importing registers)

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(5e-3, "house default for angles, which need more than LoRA; sweep it on dev")}


class Goft(_Turning, name="goft", seeds=[103]):
    """Turn the inputs of linear layers."""

    quasi: ClassVar[bool] = False


class QGoft(_Turning, name="qgoft", seeds=[103]):
    """Nearly turn the inputs of linear layers: pairs are mapped freely, softly kept orthogonal."""

    quasi: ClassVar[bool] = True
    penalty: float = Field(1e-3, ge=0, description="weight of the squared inner products of the maps' columns")

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        return Orthogonal(model, self.penalty)


class Orthogonal(Hook):
    """Adds the penalty to the loss, once a step."""

    def __init__(self, model: Model, weight: float) -> None:
        from luthier.techniques.methods._givens import Givens

        self.layers = [m for m in model.module.modules() if isinstance(m, Givens)]
        self.weight = weight

    def on_loss(self, run: Any, batch: Any, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.weight:
            return parts
        import torch

        return {**parts, "orthogonality": self.weight * torch.stack([layer.penalty() for layer in self.layers]).sum()}
