"""A gate in every layer of a stack of adapters, as a tuner in PEFT: each token is sent through the adapters that its
gate likes.

    g_t = W_gate x_t in R^N,   idx = the k largest of g_t,   w_t = softmax(g_t[idx] / T),   T = 1 while training

Importing this module makes the tuner known to PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from torch import nn

from luthier.core.errors import UserError
from luthier.engine.routing import Routed, tell
from luthier.techniques.methods._mixtures import Source, Stack
from luthier.techniques.methods._shared import sides
from luthier.techniques.methods._tuners import Around, LayerTuner, register


@dataclass
class GatedConfig(PeftConfig):
    """target_modules: layers with a gate; names, ranks: of the adapters, in the order of the gates; rank: of the stack."""

    target_modules: list[str] = field(default_factory=list)
    modules_to_save: list[str] | None = None
    exclude_modules: list[str] | None = None
    names: list[str] = field(default_factory=list)
    rank: int = 0
    top_k: int = 2
    temperature: float = 1.0
    trained: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = "LUTHIER_GATED"  # type: ignore[assignment]


class Gate(nn.Module):
    """Which adapters each token takes, and the stack that they are taken from."""

    def __init__(self, config: GatedConfig, sizes: tuple[int, int], like: torch.Tensor) -> None:
        super().__init__()
        self.routes = tuple(config.names)
        self.top_k, self.temperature = config.top_k, config.temperature
        self.gate = nn.Linear(sizes[0], len(self.routes), bias=False, device=like.device, dtype=like.dtype)
        self.stack = Stack(len(self.routes), config.rank, sizes, like, config.trained)

    def choose(self, x: torch.Tensor) -> Routed:
        """What the gate says of x [tokens, in]."""
        logits = self.gate(x).float()
        best, chosen = logits.topk(self.top_k, -1)
        return Routed(logits, chosen, (best / (1.0 if self.training else self.temperature)).softmax(-1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., out] what the chosen adapters add, from x [..., in]."""
        x = x.to(self.gate.weight.dtype)
        flat = x.reshape(-1, x.shape[-1])
        said = self.choose(flat)
        tell(said.map(lambda t: t.view(*x.shape[:-1], t.shape[-1])))
        out: torch.Tensor = self.stack(flat, said.chosen, said.weights)
        return out.view(*x.shape[:-1], -1)


class Gated(Around):
    """A linear layer with a gate and the adapters behind it."""

    adapter_layer_names = ("gated_layers",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: GatedConfig, like: torch.Tensor) -> None:
        super().__init__(base_layer, adapter_name, Gate(config, sides(base_layer), like), config.inference_mode)

    def forward(self, x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        """The layer's answer and what its adapters add."""
        out: torch.Tensor = self.base_layer(x, *given, **named)
        if self.off:
            return out
        added: torch.Tensor = self.gated_layers[self.active_adapters[0]](x)
        return out + added.to(out.dtype)

    def merge(self, *given: Any, **named: Any) -> None:
        """Refused: what is added depends on the token."""
        raise UserError("Adapters behind gates can't be merged into the base's weights: each token takes others. Keep them "
                        "beside the base, or merge the adapters themselves (luthier merge --rule ties).")


class GatedModel(LayerTuner):
    """The seam for `Gated`."""

    prefix: str = "gated_"
    tuner_layer_cls = Gated


def gated_layers(module: Any) -> dict[str, Gate]:
    """The gates by the name that each layer has in the base."""
    return {name.removeprefix("base_model.model."): layer.gated_layers["default"] for name, layer in module.named_modules()
            if isinstance(layer, Gated)}


def fill(module: Any, sources: Sequence[Source]) -> None:
    """Put the adapters into the stacks of a wrapped model."""
    for name, layer in gated_layers(module).items():
        layer.stack.fill(name, sources)


register("LUTHIER_GATED", GatedConfig, GatedModel)
