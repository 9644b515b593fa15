"""What the methods share that map pairs of a layer's inputs: where the maps stand, and that PEFT knows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Default, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._shared import targeted, wrap

if TYPE_CHECKING:
    from luthier.engine.models import Model


class Turning(Method):
    """Where and how linear layers get maps of pairs of inputs: `quasi` says whether these are free or rotations."""

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
