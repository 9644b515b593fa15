"""Tuners of our own in PEFT: they wrap, save, load and are switched off as PEFT's are, once this module was imported.

PEFT registers names of its own enumeration only, so its three mappings are written here, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import PeftConfig, mapping
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from luthier.core.errors import UserError

Reads = Literal["output", "input", "second", "norm"]
ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


@dataclass
class BottleneckConfig(PeftConfig):
    """target_modules: where an adapter sits; reads: what it sees there (`Bottlenecked`); width, size: of its two layers."""

    target_modules: list[str] = field(default_factory=list)
    modules_to_save: list[str] | None = None
    exclude_modules: list[str] | None = None
    reads: Reads = "output"
    width: int = 0
    size: int = 0
    activation: str = "gelu"
    scale: float = 1.0
    init: float = 0.01
    zero_up: bool = False
    inner: bool | None = None
    block: str = "bottleneck"
    kernel: int = 31
    pre_norm: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = "LUTHIER_BOTTLENECK"  # type: ignore[assignment]


class Bottleneck(nn.Module):
    """f(h) = W_up act(W_down h + b_down) + b_up: [.., width] to [.., width] through [.., size]."""

    def __init__(self, config: BottleneckConfig, like: torch.Tensor) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.down = nn.Linear(config.width, config.size, **options)
        self.up = nn.Linear(config.size, config.width, **options)
        self.activation = ACTIVATIONS[config.activation]()
        self.scale = config.scale
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=config.init, a=-2 * config.init, b=2 * config.init)
            nn.init.zeros_(layer.bias)
        if config.zero_up:
            nn.init.zeros_(self.up.weight)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`scale` times f."""
        return self.scale * self.up(self.activation(self.down(hidden)))


class Conformer(nn.Module):
    """f(h) = W_up silu(norm(depthwise(glu(W_down LN h)))): [batch, places, width] to the same through [.., size].

    W_down makes 2 x size for the gate, the depthwise convolution of `kernel` runs over the places, the norm is of the batch.
    With `zero_up` W_up and its bias begin at 0.
    """

    def __init__(self, config: BottleneckConfig, like: torch.Tensor) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        size, width = config.size, config.width
        self.norm = nn.LayerNorm(width, **options) if config.pre_norm else None
        self.down = nn.Conv1d(width, 2 * size, 1, **options)
        self.depthwise = nn.Conv1d(size, size, config.kernel, padding="same", groups=size, **options)
        self.batch_norm = nn.BatchNorm1d(size, **options)
        self.up = nn.Conv1d(size, width, 1, **options)
        self.dropout = nn.Dropout(config.dropout)
        self.scale = config.scale
        if config.zero_up:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`scale` times f."""
        seen = hidden if self.norm is None else self.norm(hidden)
        inner = nn.functional.glu(self.down(seen.transpose(1, 2)), dim=1)
        inner = nn.functional.silu(self.batch_norm(self.depthwise(inner)))
        return self.scale * self.dropout(self.up(inner).transpose(1, 2))


BLOCKS: dict[str, type[nn.Module]] = {"bottleneck": Bottleneck, "conformer": Conformer}


class Around(nn.Module, BaseTunerLayer):
    """A module of the base with something of ours at it, one part an adapter in the dictionary that a class names."""

    adapter_layer_names: tuple[str, ...]

    def __init__(self, base_layer: nn.Module, adapter_name: str, part: nn.Module | nn.Parameter,
                 inference_mode: bool = False) -> None:
        super().__init__()
        self.base_layer = base_layer
        held: Any = nn.ParameterDict if isinstance(part, nn.Parameter) else nn.ModuleDict
        self.add_module(self.adapter_layer_names[0], held({adapter_name: part}))
        self._active_adapter = adapter_name
        self.merged_adapters: list[str] = []
        self.set_adapter(adapter_name, inference_mode=inference_mode)

    def __getattr__(self, name: str) -> Any:
        """What the wrapper is not asked itself, the module answers (a layer's own settings)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(super().__getattr__("base_layer"), name)

    @property
    def off(self) -> bool:
        """Whether the module computes as in the base."""
        return bool(self.disable_adapters or not self.active_adapters)


class Bottlenecked(Around):
    """A module m with an adapter f at it, by what f reads; `inner` says whether f's own input is added to f too.

    output: m(x) + f(m(x)), f(m(x)) alone without inner. input: m(x) + f(x), and x with inner. second: m(h, x + f(x)), for a
    module that adds x to what it makes of h. norm: m(u + f(m(u))), for a normalisation.
    """

    adapter_layer_names = ("bottleneck_layers",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig, like: torch.Tensor) -> None:
        super().__init__(base_layer, adapter_name, BLOCKS[config.block](config, like), config.inference_mode)
        self.reads = config.reads
        self.inner = config.reads != "input" if config.inner is None else config.inner

    def forward(self, *given: Any, **named: Any) -> Any:
        """See the class."""
        base = self.base_layer
        if self.off:
            return base(*given, **named)
        f = self.bottleneck_layers[self.active_adapters[0]]
        if self.reads == "norm":
            return base(given[0] + f(base(given[0])))
        if self.reads == "second":
            return base(given[0], given[1] + f(given[1]))
        out = base(*given, **named)
        first = out[0] if isinstance(out, tuple) else out
        if self.reads == "input":
            first = first + f(given[0]) + (given[0] if self.inner else 0)
        else:
            first = f(first) + (first if self.inner else 0)
        return (first, *out[1:]) if isinstance(out, tuple) else first

    def merge(self, *given: Any, **named: Any) -> None:
        """Refused: the adapter is not linear."""
        raise UserError("An adapter of method 'adapter' is not linear and can't be merged into the base's weights. Keep it "
                        "beside the base, or use --method lora.")


class LayerTuner(BaseTuner):
    """PEFT's seam for a layer of ours: `tuner_layer_cls(target, adapter_name, config, like)` takes the place of `target`."""

    tuner_layer_cls: type[Any]
    target_module_mapping: dict[str, list[str]] = {}

    def _create_and_replace(self, peft_config: PeftConfig, adapter_name: str, target: nn.Module, target_name: str,
                            parent: nn.Module, current_key: str, parameter_name: str | None = None) -> None:
        made = self.tuner_layer_cls(target, adapter_name, peft_config, next(self.model.parameters()))
        made.train(target.training)
        setattr(parent, target_name, made)


    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """What was wrapped takes its place again; PEFT would look for a weight of its own, which not every module has."""
        setattr(parent, child_name, new_module)


class BottleneckModel(LayerTuner):
    """The seam for `Bottlenecked`, which holds several adapters."""

    prefix: str = "bottleneck_"
    tuner_layer_cls = Bottlenecked

    def _create_and_replace(self, peft_config: PeftConfig, adapter_name: str, target: nn.Module, *where: Any, **named: Any
                            ) -> None:
        if not isinstance(target, Bottlenecked):
            super()._create_and_replace(peft_config, adapter_name, target, *where, **named)
            return
        assert isinstance(peft_config, BottleneckConfig)
        target.bottleneck_layers[adapter_name] = BLOCKS[peft_config.block](peft_config, next(self.model.parameters()))
        target.set_adapter(self.active_adapters)


@dataclass
class PromptConfig(PeftConfig):
    """target_modules: layers that get vectors; count: how many each; width: of a vector; reach: they begin within ±reach."""

    target_modules: list[str] = field(default_factory=list)
    modules_to_save: list[str] | None = None
    exclude_modules: list[str] | None = None
    count: int = 0
    width: int = 0
    reach: float = 0.0
    lost: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = "LUTHIER_DEEP_PROMPTS"  # type: ignore[assignment]


class Prompted(Around):
    """A layer in front of which learned vectors stand after the first place: put in, or in the place of those put in below.

    The first layer leaves out `lost` places behind the first one (AST's distillation token).
    """

    adapter_layer_names = ("prompt_vectors",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: PromptConfig, like: torch.Tensor, first: bool) -> None:
        vectors = torch.empty(config.count, config.width, device=like.device, dtype=like.dtype).uniform_(-config.reach,
                                                                                                         config.reach)
        super().__init__(base_layer, adapter_name, nn.Parameter(vectors), config.inference_mode)
        self.first, self.lost = first, config.lost

    def forward(self, states: torch.Tensor, *given: Any, **named: Any) -> Any:
        """What the layer says to [batch, places, width] with the vectors among the places."""
        if not self.off:
            vectors = self.prompt_vectors[self.active_adapters[0]]
            rest = states[:, 1 + (self.lost if self.first else len(vectors)):]
            states = torch.cat([states[:, :1], vectors.expand(len(states), -1, -1), rest], 1)
        return self.base_layer(states, *given, **named)

    def merge(self, *given: Any, **named: Any) -> None:
        """Refused: places can't be merged into weights."""
        raise UserError("Vectors of method 'deep-prompts' stand among the places and can't be merged into the base's weights.")


class PromptedModel(LayerTuner):
    """The seam for `Prompted`."""

    prefix: str = "prompt_"
    tuner_layer_cls = Prompted

    def _create_and_replace(self, peft_config: PeftConfig, adapter_name: str, target: nn.Module, target_name: str,
                            parent: nn.Module, current_key: str, parameter_name: str | None = None) -> None:
        assert isinstance(peft_config, PromptConfig)
        first = min(int(name.rpartition(".")[2]) for name in peft_config.target_modules) == int(target_name)
        made = Prompted(target, adapter_name, peft_config, next(self.model.parameters()), first)
        made.train(target.training)
        setattr(parent, target_name, made)


def register(name: str, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Let PEFT know a tuner under a name of ours."""
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[name] = config  # type: ignore[index]
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[name] = tuner  # type: ignore[index]
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[name] = tuner.prefix  # type: ignore[index]


register("LUTHIER_BOTTLENECK", BottleneckConfig, BottleneckModel)
register("LUTHIER_DEEP_PROMPTS", PromptConfig, PromptedModel)
