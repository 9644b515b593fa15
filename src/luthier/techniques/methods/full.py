"""Full fine-tuning: every weight moves. The reference that cheaper methods are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.core.kinds import Default, Method
from luthier.core.step import FitCtx

if TYPE_CHECKING:
    from luthier.engine.models import Model


class Full(Method, name="full"):
    """Train every weight; leaves a complete model."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "model"

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        for parameter in model.module.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        return model

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(2e-5, "Devlin et al. 2019: 2e-5 to 5e-5")}
