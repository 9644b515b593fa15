"""drawn-entries: entries of any weight move, drawn uniformly: the control of methods that say which ones should."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.kinds import Default, Hook, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._selective import Retrain, Selective, Tensors

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


class DrawnEntries(Selective, name="drawn-entries"):
    """Train as many drawn entries of the model as another method has weights; leaves a sparse delta."""

    sought: ClassVar[tuple[str, str]] = ("weight", "weights")
    like: Slot[Method] = Field(named("bitfit"), description="the method that says how many: one that trains some tensors")

    def found(self, model: Model) -> dict[str, torch.nn.Parameter]:
        return {n: p for n, p in model.module.named_parameters() if p.is_floating_point()}

    def check(self) -> None:
        """Raises UserError for a method that names no tensors."""
        if not isinstance(self.like, Selective):
            raise UserError(f"drawn-entries: like = {self.like.info.name} does not say which tensors it trains; take bitfit or "
                            "layernorm.")

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        """Raises UserError for a model in which the other method has nothing to train."""
        assert isinstance(self.like, Selective)
        try:
            count = sum(p.numel() for p in self.like.chosen(model).values())
        except UserError as error:
            raise UserError(f"drawn-entries: like = {self.like.info.name}: {error}") from None
        return Retrain("drawn-entries", model, ctx, list(self.chosen(model)), count, 0, _drawn)

    def finish(self, model: Model, hook: Hook) -> None:
        assert isinstance(hook, Retrain)
        hook.settle()

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return self.like.defaults(model, rows)


def _drawn(hook: Retrain) -> Tensors:
    import torch

    rng = hook.ctx.rng("drawn-entries")
    return {n: torch.from_numpy(rng.random(p.shape)) for n, p in hook.begin.items()}
