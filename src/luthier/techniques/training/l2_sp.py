"""l2-sp: weights are held near their starting point, lambda / 2 |w - u|² is added to the loss of a step.

w are the trained weights of linear layers [out, in], u their values before the first step. Unlike weight decay it pulls to
what the model knew and not to 0, and unlike mixout it pulls equally hard in all directions.

When it helps: few rows, and much to be lost. Source: Li, Grandvalet & Davoine 2018, arXiv 1802.01483; compared with mixout by
Lee et al. 2020, which takes lambda = 0.01.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from luthier.core.kinds import Hook, Regularizer
from luthier.core.step import FitCtx
from luthier.techniques.training._anchors import anchored, trained_linears

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.models import Model


class L2Sp(Regularizer, name="l2-sp"):
    """Pull the weights to where they began."""

    weight: float = Field(0.01, ge=0, description="lambda")
    target: str | tuple[str, ...] = Field("all-linear", description="all-linear, or names of layers")
    adapters: bool = Field(False, description="hold an adapter's own weights to their values at the start")

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        layers = trained_linears("l2-sp", model, self.target, self.adapters)
        anchors = anchored("l2-sp", model, layers, ctx)
        return Pull(self.weight, [(layers[name].weight, u) for name, u in anchors.items()])


class Pull(Hook):
    """Adds the part `l2-sp`."""

    def __init__(self, strength: float, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.strength, self.pairs = strength, pairs

    def on_loss(self, run: Forward, batch: object, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        if not self.strength:
            return parts
        far = torch.stack([(w.float() - u.float()).square().sum() for w, u in self.pairs]).sum()
        return {**parts, "l2-sp": self.strength / 2 * far}
