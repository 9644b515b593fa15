"""LoRA: h = W0 x + (alpha / rank) B A x, with W0 frozen, A [rank, in] random and B [out, rank] zero at the start.

Few trained weights, small artifacts, and no cost at inference once merged. Source: Hu et al. 2021 (seed 114). The
layers are PEFT's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.kinds import Default, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._shared import require_rank, targeted, wrap

if TYPE_CHECKING:
    from luthier.engine.models import Model


class Lora(Method, name="lora", seeds=[114]):
    """Low-rank adapters on linear layers."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "adapter"
    rank: int = Field(8, ge=1, description="rank of the update")
    alpha: float = Field(16, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of A while training")
    target: str | tuple[str, ...] = Field("all-linear", description="all-linear, attention-qv, or names of layers")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead")
    dora: bool = Field(False, description="learn magnitude and direction apart")

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        from peft import LoraConfig

        targets = targeted("lora", model, self.target)
        require_rank("lora", self.rank, targets)
        return wrap(model, LoraConfig(
            r=self.rank, lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout, target_modules=list(targets),
            use_rslora=self.rslora, use_dora=self.dora))

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        if model.architecture == "encoder":
            return {"learning_rate": Default(5e-4, "Hu et al. 2021, RoBERTa: 4e-4 to 5e-4")}
        return {"learning_rate": Default(2e-4, "Hu et al. 2021, GPT-2: 2e-4")}
