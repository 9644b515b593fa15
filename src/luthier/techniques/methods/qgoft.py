"""qGOFT: GOFT with a free map of each pair in place of its rotation, softly kept orthogonal.

Each pair has [[a1, b1], [a2, b2]], the identity at the start, so a layer with d inputs has 4 (d - 1) numbers, and
`penalty` * sum (a1 b1 + a2 b2)^2 is added to the loss: lengths may change, and angles a little.

When it helps: where turning alone is too stiff. Source: Ma et al. 2024, arXiv 2404.04316 (seed 103).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.core.kinds import Hook
from luthier.core.step import FitCtx
from luthier.techniques.methods._turning import Turning

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


class QGoft(Turning, name="qgoft", seeds=[103]):
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
