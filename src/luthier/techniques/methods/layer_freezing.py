"""Layer freezing: of layers 1..L only the last k are trained, with what comes after them; the rest stays as it is.

    k = ceil(share · L);   frozen: embeddings and layers 1..L-k;   trained: layers L-k+1..L, final norm, pooler, heads

No gradient goes below the lowest trained layer, and what is computed there can be kept (`cache_frozen` of the training
step). When it helps: little data or little time; a quarter of the layers reached 90 % of the quality of full tuning on
most tasks of the source. The vocabulary head stays frozen: in many models it is the embedding. With `train_last` = L the
embeddings are still frozen; `--method full` trains them too. An encoder-decoder trains the last k layers of both sides.

Source: Lee, Tang, Lin 2019, "What Would Elsa Do?", arXiv 1911.03090 (seed 11).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from luthier.core.errors import UserError
from luthier.core.kinds import Default, Method
from luthier.core.step import FitCtx
from luthier.engine.layers import layer_stacks
from luthier.techniques.methods._shared import percent

if TYPE_CHECKING:
    from luthier.engine.models import Model


class LayerFreezing(Method, name="layer-freezing", seeds=[11]):
    """Train the last layers only; leaves the tensors that moved."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "delta"
    train_last: int | float = Field(0.25, ge=0, description="how many of the last layers are trained; below 1, which share "
                                                            "of them (0.25 or 25%), rounded up")

    @field_validator("train_last", mode="before")
    @classmethod
    def _percent(cls, value: Any) -> Any:
        return percent(value)

    @field_validator("train_last")
    @classmethod
    def _whole(cls, value: int | float) -> int | float:
        if isinstance(value, float) and value > 1:
            if not value.is_integer():
                raise ValueError(f"{value:g} is neither a share (below 1) nor a whole number of layers")
            return int(value)
        return value

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        stacks = layer_stacks(model)
        if not stacks:
            raise UserError(f"layer-freezing finds no stack of layers in {model.name}: its layers are shared, or not called "
                            "one after another. Try --method lora or --method full.")
        for stack in stacks:
            count = self._count(len(stack.layers), model.name)
            for module in (*stack.layers[len(stack.layers) - count:], *stack.after):
                module.requires_grad_(True)
        if not any(p.requires_grad for p in model.module.parameters()) and model.architecture != "encoder":
            raise UserError(f"layer-freezing: train_last = {self.train_last} leaves nothing to train in {model.name}.")
        return model

    def _count(self, layers: int, name: str) -> int:
        share = isinstance(self.train_last, float)
        count = math.ceil(self.train_last * layers) if share else int(self.train_last)
        if count > layers:
            raise UserError(f"layer-freezing: train_last = {self.train_last}, but {name} has {layers} layers.")
        return count

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(5e-5, "Devlin et al. 2019: 2e-5 to 5e-5; the upper end, since few layers move")}
