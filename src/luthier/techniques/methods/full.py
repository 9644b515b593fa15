"""Full fine-tuning: every weight moves, or all but the lowest. The reference that cheaper methods are compared with.

With `freeze_bottom` = K the embeddings and layers 1..K stay as they are (Telly-K); -1 freezes nothing, 0 the embeddings
alone, and from K = L on only what comes after the layers is trained. Below the lowest trained layer nothing is recorded for
the backward, and its states can be kept on disk (`cache_frozen` of the training step).

    auto: K = the largest with RSA(0..K) >= `alike`, of every layer before and after a pilot that tunes everything

The pilot takes the share `pilot` of the planned steps; then all begins again. That rule is ours, derived from the source's
finding that tuning changes the representations of the top layers mostly. When it helps: less time and memory at equal
quality, the more the longer the stack. Source: Shi et al. 2023, "Towards efficient fine-tuning of pre-trained code models",
arXiv 2304.05216, sections 4 and 5 (seed 52).
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from luthier.core.errors import UserError
from luthier.core.kinds import Default, Hook, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._phases import Phases

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


class Full(Method, name="full", seeds=[52]):
    """Train every weight, or those above the lowest layers; leaves a complete model."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "model"
    freeze_bottom: int | Literal["auto"] = Field(-1, description="how many of the lowest layers stay as they are, the "
                                                                 "embeddings with them; -1: nothing does; auto: by a pilot")
    pilot: float = Field(0.2, gt=0, lt=1, description="auto: share of the planned steps that the pilot takes")
    alike: float = Field(0.9, gt=0, le=1, description="auto: least RSA of the layers that are frozen")
    pilot_rows: int = Field(100, ge=4, description="auto: most training rows that layers are compared on")

    @field_validator("freeze_bottom")
    @classmethod
    def _known(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < -1:
            raise ValueError(f"{value} layers can't be frozen; legal are -1 (nothing), 0 (the embeddings), 1, 2, … and auto")
        return value

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        for parameter in model.module.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        if self.freeze_bottom == "auto":
            freeze(model, -1)  # a model without layers is refused here, not after the pilot
        elif self.freeze_bottom >= 0:
            layers = freeze(model, self.freeze_bottom)
            if self.freeze_bottom >= layers:
                ctx.log(f"full: freeze_bottom = {self.freeze_bottom}, and {model.name} has {layers} layers: only what comes "
                        "after them is trained")
        return model

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        return Pilot(self, model, ctx) if self.freeze_bottom == "auto" else Hook()

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(2e-5, "Devlin et al. 2019: 2e-5 to 5e-5")}


def freeze(model: Model, count: int) -> int:
    """Freeze the embeddings and the lowest `count` layers of each stack (-1: nothing); returns how many layers there are.

    Of an encoder the pooler is frozen with them, which no features pass.

    Raises:
        UserError: no stack of layers is found.
    """
    from luthier.engine.layers import layer_stacks

    stacks = layer_stacks(model)
    if not stacks:
        lists = [n for n, m in model.module.named_modules() if n and n.count(".") < 3][:12]
        raise UserError(f"full: freeze_bottom finds no stack of layers in {model.name}: they are shared, or not called one "
                        f"after another. Its modules: {', '.join(lists)}. Leave out freeze_bottom.")
    if count >= 0:
        for stack in stacks:
            for module in stack.below(min(count, len(stack.layers))):
                module.requires_grad_(False)
        if model.architecture == "encoder":
            for module in stacks[0].after:
                if "pooler" in type(module).__name__.lower():
                    module.requires_grad_(False)
    return max(len(stack.layers) for stack in stacks)


class Pilot(Phases):
    """Phase 0 tunes everything; the layers that stayed alike are frozen, all weights go back, and phase 1 tunes the rest."""

    def __init__(self, method: Full, model: Model, ctx: FitCtx) -> None:
        super().__init__("full", model, ctx, [method.pilot, 1 - method.pilot])
        assert ctx.rows is not None
        if model.architecture == "encoder-decoder" or model.sounds:
            raise UserError("full: freeze_bottom = auto compares the layers of one stack that reads tokens. Give a number.")
        self.method, self.rows = method, ctx.rows
        self.weights = [p for m in (model.module, *model.heads.values()) for p in m.parameters() if p.requires_grad]
        self.begin = [p.detach().clone() for p in self.weights]
        self.places = ctx.rng("full/pilot").permutation(len(ctx.rows))[:method.pilot_rows]
        self.before = self._layers()
        self.alike: list[float] = []

    def _layers(self) -> torch.Tensor:
        """[layers + 1, rows, width] what every layer says of the rows."""
        import torch

        from luthier.core.kinds import Tokens
        from luthier.engine.layers import evaluating
        from luthier.engine.representations import pooled, states_of

        rows = [next(part.ids for part in self.rows.task.rows[int(place)].values() if isinstance(part, Tokens))
                for place in self.places]
        with evaluating(self.model.module.modules()), torch.random.fork_rng(devices=[]):
            return pooled(states_of(self.model, rows))

    def turn(self, phase: int) -> None:
        """Choose, go back to the beginning, and freeze."""
        import torch

        from luthier.engine.representations import rsa

        self.alike = [rsa(one, two) for one, two in zip(self.before, self._layers(), strict=True)]
        with torch.no_grad():
            for parameter, was in zip(self.weights, self.begin, strict=True):
                parameter.copy_(was)
        count = chosen(self.alike, self.method.alike)
        freeze(self.model, count)
        self.ctx.log(f"full: freeze_bottom = {count} of {len(self.alike) - 1} layers; RSA after the pilot "
                     + ", ".join(f"{r:.3f}" for r in self.alike))

    def state_dict(self) -> dict[str, list[float]]:
        return {"alike": self.alike}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.alike = list(state["alike"])


def chosen(alike: list[float], least: float) -> int:
    """The largest K below the number of layers with alike[0..K] >= least; -1 where not even the embeddings are."""
    return min(len(list(takewhile(lambda r: r >= least, alike))) - 1, len(alike) - 2)
