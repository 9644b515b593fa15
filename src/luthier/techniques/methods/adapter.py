"""Adapters: small residual networks between the layers of a frozen model.

    f(h) = W_up act(W_down h + b_down) + b_up,   W_down [m, d], W_up [d, m]:  2 m d + d + m weights each

With h what a sublayer makes of x, after dropout:

    style      models that normalise last (BERT)       models that normalise first (Llama, T5)
    houlsby    LN(x + h + f(h)) in both sublayers       x + h + f(h) in all sublayers
    pfeiffer   LN(x + h + f(LN(x + h))) after the FFN   x + h + f(x + h) after the FFN
    parallel   LN(x + h + scale f(x)) beside the FFN    the FFN's own input and output: h + scale f(input)

Models that normalise before a sublayer and hold it apart (AST) take pfeiffer as h + f(h) at the FFN's output: its input plus
its output there is the layer's own residual. `block: conformer` has for f a LayerNorm, W_down to 2 m, a gate, a convolution
over the places of each of the m numbers, a norm of the batch, SiLU and W_up: 3 m d + m (k + 5) + 3 d weights.
`inner_residual: false` keeps f(h) alone, `true` adds x to f(x) beside the FFN: neither begins as the base, and both are here
to be compared.

Weights begin as a normal of deviation `init`, cut at two, and biases at 0: nearly the base. Houlsby trains the norms too. What
is learned is not linear, so it can't be merged. When it helps: many tasks on one base, each a few per cent of its size.

Source: Houlsby et al. 2019, arXiv 1902.00751 (seed 43); Pfeiffer et al. 2021; He et al. 2022 (parallel, scale 4); Cappellazzo
et al. 2023, arXiv 2312.03694 (seed 74: AST, conformer; its released code starts both matrices at 0, which never learn).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Default, Hook, Method
from luthier.core.step import FitCtx
from luthier.engine.layers import layer_stacks
from luthier.techniques.methods._selective import norms
from luthier.techniques.methods._shared import wrap

if TYPE_CHECKING:
    from luthier.engine.models import Model

Style = Literal["houlsby", "pfeiffer", "parallel"]


@dataclass(frozen=True)
class Layout:
    """Where adapters sit in a layer that has the module `mark`: by style, modules of it ('' is itself) and what f reads."""

    mark: str
    houlsby: tuple[str, ...]
    pfeiffer: tuple[str, str]
    parallel: tuple[str, str]

    def places(self, style: Style) -> tuple[tuple[str, ...], str]:
        """The modules, and what is read there."""
        if style == "houlsby":
            return self.houlsby, "output"
        name, reads = self.pfeiffer if style == "pfeiffer" else self.parallel
        return (name,), reads


# The first whose mark a layer has is its layout. In Gemma's layers a norm follows each sublayer; f reads what that one gives.
LAYOUTS = (
    Layout("attention.output.dropout", ("attention.output.dropout", "output.dropout"), ("output.LayerNorm", "norm"),
           ("output", "second")),
    Layout("post_feedforward_layernorm", ("post_attention_layernorm", "post_feedforward_layernorm"), ("", "output"),
           ("mlp", "input")),
    Layout("self_attn.o_proj", ("self_attn.o_proj", "mlp"), ("", "output"), ("mlp", "input")),
    Layout("layer.2.DenseReluDense", ("layer.0.dropout", "layer.1.dropout", "layer.2.dropout"), ("layer.2", "output"),
           ("layer.2.DenseReluDense", "input")),
    Layout("layer.1.DenseReluDense", ("layer.0.dropout", "layer.1.dropout"), ("layer.1", "output"),
           ("layer.1.DenseReluDense", "input")),
    Layout("layernorm_before", ("attention.o_proj", "mlp"), ("mlp", "output"), ("mlp", "input")),
)


class Adapter(Method, name="adapter", seeds=[43, 74]):
    """Bottleneck adapters in every layer."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "adapter"
    style: Style = Field("houlsby", description="where adapters sit: houlsby, pfeiffer or parallel")
    reduction: int = Field(16, ge=1, description="the bottleneck is the width divided by this")
    bottleneck: int | None = Field(None, ge=1, description="size of the bottleneck; width / reduction if left out")
    activation: Literal["gelu", "relu", "silu"] = Field("gelu", description="between the two layers")
    scale: float | None = Field(None, gt=0, description="factor of f; 4 for parallel and 1 for the others if left out")
    init: float = Field(0.01, ge=0, description="deviation of the weights at the start")
    zero_up: bool = Field(False, description="begin exactly as the base, with W_up = 0")
    train_norms: bool | None = Field(None, description="move the norms too; houlsby does if left out, where it can")
    block: Literal["bottleneck", "conformer"] = Field("bottleneck", description="what f is; conformer looks at neighbours too")
    kernel: int = Field(31, ge=1, description="places that the convolution of a conformer sees; odd")
    pre_norm: bool = Field(True, description="a LayerNorm of its own before a conformer's W_down")
    inner_residual: bool | None = Field(None, description="add what f reads to f; what begins as the base if left out")
    budget: float | None = Field(None, gt=0, lt=1,
                                 description="share of the model's weights to be trained; sets the bottleneck")
    layers: tuple[int, ...] = Field((), description="only these layers, counted from 0; all if empty")

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        """Raises UserError for a model whose layers have no known layout, and layers that it does not have."""
        from luthier.techniques.methods._tuners import BottleneckConfig

        if self.kernel % 2 == 0:
            raise UserError(f"adapter: kernel = {self.kernel}: a convolution that keeps the places is odd, such as "
                            f"{self.kernel + 1}.")
        places, reads = self._places(model)
        size = self._size(model, len(places))
        if size >= model.width and ctx is not None:
            ctx.log(f"adapter: a bottleneck of {size} is no bottleneck, the model's width is {model.width}")
        saved = self._norms(model, places, ctx) if self.train_norms or (
            self.train_norms is None and self.style == "houlsby") else None
        scale = self.scale or (4.0 if self.style == "parallel" and self.block == "bottleneck" else 1.0)
        return wrap(model, BottleneckConfig(
            target_modules=places, modules_to_save=saved, reads=reads, width=model.width, size=size,  # type: ignore[arg-type]
            activation=self.activation, scale=scale, init=self.init, zero_up=self.zero_up,
            inner=self.inner_residual, block=self.block, kernel=self.kernel, pre_norm=self.pre_norm))

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        return Kept(model)

    def _size(self, model: Model, places: int) -> int:
        """The size of a bottleneck: as asked for, or the one at which about `budget` of the weights are trained."""
        if self.budget is None:
            return self.bottleneck or max(1, model.width // self.reduction)
        if self.bottleneck is not None:
            raise UserError("adapter: bottleneck and budget are both given; budget sets the bottleneck. Leave one out.")
        wanted = self.budget * model.parameters() / places
        return max(1, round((wanted - self.weights(0, model.width)) / (self.weights(1, model.width) - self.weights(0,
                                                                                                                   model.width))))

    def weights(self, size: int, width: int) -> int:
        """How many weights one adapter has."""
        if self.block == "bottleneck":
            return 2 * width * size + size + width
        return 3 * width * size + (self.kernel + 5) * size + width + 2 * width * self.pre_norm

    def _places(self, model: Model) -> tuple[list[str], str]:
        """Names of the modules that get an adapter, and what it reads there."""
        names = {id(m): n for n, m in model.module.named_modules()}
        places, reads = [], ""
        for stack in layer_stacks(model):
            beyond = [i for i in self.layers if i >= len(stack.layers) or i < 0]
            if beyond:
                raise UserError(f"adapter: there is no layer {beyond[0]}; {model.name} has 0 to {len(stack.layers) - 1}.")
            for i in self.layers or range(len(stack.layers)):
                layer = stack.layers[i]
                inside = dict(layer.named_modules())
                layout = next((x for x in LAYOUTS if x.mark in inside), None)
                if layout is None:
                    raise UserError(f"adapter: the layers of {model.name} have no known layout. They have: "
                                    f"{', '.join(n for n in inside if n)}. Try --method lora.")
                found, reads = layout.places(self.style)
                places += [names[id(inside[name])] for name in found]
        if not places:
            raise UserError(f"adapter finds no stack of layers in {model.name}: its layers are shared, or not called one after "
                            "another. Try --method lora.")
        return places, reads

    def _norms(self, model: Model, places: list[str], ctx: FitCtx) -> list[str]:
        """The norms that move. PEFT can't save a module within one that is wrapped: such norms stay, and it is said."""
        inside = [n for n in norms(model) if any(n == p or n.startswith(f"{p}.") for p in places)]
        if inside and self.train_norms:
            raise UserError(f"adapter: train_norms can't reach {inside[0]}: an adapter of style {self.style} wraps it. Leave "
                            "train_norms out.")
        if inside and ctx is not None:
            ctx.log(f"adapter: {len(inside)} norms carry an adapter and stay as they are ({inside[0]} and others)")
        return sorted(set(norms(model)) - set(inside))

    def loadable(self) -> None:
        from luthier.techniques.methods import _tuners  # noqa: F401  (importing registers)

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(3e-4, "Houlsby et al. 2019: 3e-5, 3e-4 or 3e-3, by validation")}


class Kept(Hook):
    """The running means of norms of the batch, which no optimizer knows, go into the checkpoint."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def _buffers(self) -> dict[str, Any]:
        return {n: b for n, b in self.model.module.named_buffers() if "bottleneck_layers" in n}

    def state_dict(self) -> dict[str, Any]:
        return {name: buffer.clone() for name, buffer in self._buffers().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, buffer in self._buffers().items():
            buffer.copy_(state[name])
