"""mixout: in each forward of the training a random part of the weights is swapped for the pretrained ones.

With a trained weight w [out, in], its value u before the first step, and M ~ Bernoulli(p) for each entry,

    w' = (M u + (1 - M) w - p u) / (1 - p) = u + (1 - M) (w - u) / (1 - p),      E w' = w,  Var w' = p / (1 - p) (w - u)²

so mixout is dropout of the difference w - u: noise in proportion to the way travelled. For a loss of curvature m it adds at
least m p / (2 (1 - p)) |w - u|² on average: a pull to u that adapts. Gradients reach w alone; evaluation reads plain w, and
the saved model is a plain one. `toward: zero` is u = 0, which is dropconnect.

Mixed are the trained linear layers of the model, not its vocabulary head, nor a task's new head, which keeps its dropout. One
draw holds for a micro-batch, so that activations computed again in the backward meet the weights they were computed with; it
comes from a generator of its own, and dropout draws what it would draw without mixout.

When it helps: a large encoder on few labels, where some trainings collapse. Source: Lee, Cho & Kang 2020, arXiv 1909.11299
(seed 122), and its code, which puts mixout in the place of dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from luthier.core.identity import hash_folder
from luthier.core.kinds import Hook, Regularizer
from luthier.core.rng import Rng
from luthier.core.step import FitCtx
from luthier.techniques.training._anchors import anchored, trained_linears

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


class Mixout(Regularizer, name="mixout", seeds=[122]):
    """Swap a random part of the weights for the pretrained ones while training."""

    p: float = Field(0.7, ge=0, lt=1, description="share of the entries that are swapped; 0 changes nothing at all")
    target: str | tuple[str, ...] = Field("all-linear", description="all-linear, or names of layers")
    granularity: Literal["element", "row"] = Field("element", description="what is swapped together: an entry, or all "
                                                                          "weights of one output")
    replace_dropout: bool = Field(True, description="mixout takes the place of the model's dropout, which is off meanwhile")
    toward: Literal["start", "zero"] = Field("start", description="what is swapped in: weights before training, or 0")
    adapters: bool = Field(False, description="mix an adapter's own weights with their values at the start, too")
    reference: str = Field("", description="a model folder whose weights are swapped in, in place of those at the start")

    def content(self) -> dict[str, Any]:
        return {"reference": hash_folder(Path(self.reference).expanduser())} if self.reference else {}

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        """Raises UserError where nothing is there to be mixed, or what it is mixed with is unknown."""
        layers = trained_linears("mixout", model, self.target, self.adapters)
        if not self.p:
            return Mixing(model, {})
        anchors = anchored("mixout", model, layers, ctx, self.reference)
        ctx.log(f"mixout: p = {self.p:g} in {len(layers)} linear layers"
                + ("; the model's own dropout is off" if self.replace_dropout else ""))
        return Mixing(model, {name: self._mixing(name, layers[name], u) for name, u in anchors.items()}, self.replace_dropout)

    def finish(self, model: Model, hook: Hook) -> None:
        assert isinstance(hook, Mixing)
        hook.end()

    def _mixing(self, name: str, layer: Any, u: torch.Tensor) -> tuple[Any, Callable[[torch.Tensor], torch.Tensor]]:
        import torch

        outputs = 0 if isinstance(layer, torch.nn.Linear) else 1  # a Conv1D holds [in, out]
        shape = [n if self.granularity == "element" or side == outputs else 1 for side, n in enumerate(u.shape)]
        begin = torch.zeros_like(u) if self.toward == "zero" else u

        def mixed(w: torch.Tensor) -> torch.Tensor:
            return mix(w, begin, kept(shape, self.p, name, w.device), self.p)

        return layer, mixed


def mix(w: torch.Tensor, u: torch.Tensor, keep: torch.Tensor, p: float) -> torch.Tensor:
    """w' of the docstring; `keep` is 1 - M and has, or is expanded to, the shape of w."""
    return u + keep.to(w.dtype) * (w - u) / (1 - p)


def kept(shape: list[int], p: float, name: str, device: torch.device) -> torch.Tensor:
    """1 - M [shape]: what is drawn depends on the layer's name and on the seed that the loop has set for the micro-batch."""
    import torch

    generator = torch.Generator(device).manual_seed(Rng(torch.initial_seed()).key("mixout", name))
    return torch.rand(shape, generator=generator, device=device) >= p


class Mixing(Hook):
    """While a layer in training mode computes, its attribute `weight` is the mixed one; its parameter stays what it is."""

    def __init__(self, model: Model, mixed: Mapping[str, tuple[Any, Callable[..., Any]]],
                 replace_dropout: bool = False) -> None:
        import torch

        self.handles = []
        for layer, mixing in mixed.values():
            self.handles += [layer.register_forward_pre_hook(_entering(mixing)),
                             layer.register_forward_hook(_leaving, always_call=True)]
        self.dropouts = [(m, m.p) for m in model.module.modules() if replace_dropout and isinstance(m, torch.nn.Dropout)]
        for module, _ in self.dropouts:
            module.p = 0.0

    def end(self) -> None:
        """The layers as they were."""
        for handle in self.handles:
            handle.remove()
        for module, p in self.dropouts:
            module.p = p


def _entering(mixing: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any, Any], None]:
    def entering(layer: Any, given: Any) -> None:
        if layer.training:
            # An instance's own dictionary is asked before the module's parameters, whose names must not change.
            layer.__dict__["weight"] = mixing(layer._parameters["weight"])

    return entering


def _leaving(layer: Any, given: Any, answer: Any) -> None:
    layer.__dict__.pop("weight", None)
