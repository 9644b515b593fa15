"""BitFit: only the bias terms move (about 0.1 % of an encoder's weights).

Source: Ben Zaken, Goldberg, Ravfogel 2021 (seed 153). Works where the model has biases: BERT and T5-like encoders do,
Llama and Gemma have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Default, Method
from luthier.core.step import FitCtx

if TYPE_CHECKING:
    from luthier.engine.models import Model


class BitFit(Method, name="bitfit", seeds=[153]):
    """Train bias terms only; leaves the biases that moved."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "delta"
    terms: tuple[str, ...] = Field((), description="only biases whose name contains one of these, such as query; all if empty")

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        biases = {n: p for n, p in model.module.named_parameters() if n.endswith("bias")}
        if not biases:
            raise UserError(f"bitfit has nothing to train: {model.name} has no bias terms. Try --method lora.")
        chosen = {n: p for n, p in biases.items() if not self.terms or any(t in n for t in self.terms)}
        if not chosen:
            parts = sorted({n.removesuffix(".bias").rsplit(".", 1)[-1] for n in biases})
            raise UserError(f"bitfit: no bias is called {', '.join(self.terms)}. This model has: {', '.join(parts)}.")
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        return model

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(1e-3, "Ben Zaken et al. 2021: 1e-4 to 1e-2, larger than full tuning")}
