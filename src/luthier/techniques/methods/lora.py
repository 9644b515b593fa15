"""LoRA: h = W0 x + (alpha / rank) B A x, with W0 frozen, A [rank, in] random and B [out, rank] zero at the start.

Few trained weights, small artifacts, and no cost at inference once merged. Source: Hu et al. 2021 (seed 114). The
layers are PEFT's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Default, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._shared import linear_names, wrap

if TYPE_CHECKING:
    from luthier.engine.models import Model

ATTENTION_QV = ("q_proj", "v_proj", "query", "value", "q", "v")


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

        names = linear_names(model)
        targets = self._targets(names)
        smallest = min(min(names[n]) for n in targets)
        if self.rank > smallest:
            raise UserError(f"lora: rank = {self.rank} is above {smallest}, the smallest side of a targeted layer.")
        return wrap(model, LoraConfig(
            r=self.rank, lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout, target_modules=targets,
            use_rslora=self.rslora, use_dora=self.dora))

    def _targets(self, names: dict[str, tuple[int, int]]) -> list[str]:
        if self.target == "all-linear":
            return sorted(names)
        wanted = ATTENTION_QV if self.target == "attention-qv" else (
            (self.target,) if isinstance(self.target, str) else self.target)
        found = [n for n in names if n in wanted or n.rsplit(".", 1)[-1] in wanted]
        if not found:
            short = sorted({n.rsplit(".", 1)[-1] for n in names})
            raise UserError(f"lora: no linear layer is called {', '.join(wanted)}. This model has: {', '.join(short)}.")
        return sorted(found)

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        if model.architecture == "encoder":
            return {"learning_rate": Default(5e-4, "Hu et al. 2021, RoBERTa: 4e-4 to 5e-4")}
        return {"learning_rate": Default(2e-4, "Hu et al. 2021, GPT-2: 2e-4")}
