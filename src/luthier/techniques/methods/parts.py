"""parts: whole parts of a model are trained, the others stay as they are; what moved is kept as a delta.

LLaVA's two stages: `train: [projector]` on captions at 2e-3, then `train: [projector, language]` on instructions at 2e-5; the
picture encoder moves in neither. A part that is frozen in evaluation mode answers as it was trained: it draws no dropout.

When it helps: models that are joined of several. Source: Liu, Li, Wu, Lee 2023, arXiv 2304.08485 (seed 137).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError, nearest
from luthier.core.kinds import Body, Default, Method
from luthier.core.step import FitCtx

if TYPE_CHECKING:
    from luthier.engine.models import Model


class Parts(Method, name="parts", seeds=[137]):
    """Train the named parts of a joined model."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "delta"
    body: Slot[Body] = Field(named("llava"), description="what names the parts of the model")
    train: tuple[str, ...] = Field(("projector",), min_length=1, description="parts that move: vision, projector, language")

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        """Raises UserError for a model without such parts, and for a part that it does not have."""
        try:
            parts = self.body.parts(model)
        except UserError as error:
            raise UserError(f"parts: {error}") from None
        strange = next((name for name in self.train if name not in parts), None)
        if strange is not None:
            raise UserError(f"parts: there is no part '{strange}' of {model.name}. {nearest(strange, parts)}")
        model.module.requires_grad_(False)
        for name in self.train:
            parts[name].requires_grad_(True)
        return model

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        if tuple(self.train) == ("projector",):
            return {"learning_rate": Default(2e-3, "Liu et al. 2023, stage 1: projector alone")}
        return {"learning_rate": Default(2e-5, "Liu et al. 2023, stage 2: projector and language model")}
