"""A product of Givens rotations, or of free 2 x 2 maps, on the input of a linear layer, as a tuner within PEFT."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.techniques.methods._tuners import LayerTuner, register

Sweep = tuple[tuple[int, ...], tuple[int, ...]]


@cache
def sweeps(width: int) -> tuple[Sweep, ...]:
    """Pairs (left, right) of each sweep, width - 1 in all: neighbours among what is left; the first of each pair goes on.

    For a power of two sweep r pairs (i, i + 2^(r-1)). An index without a neighbour goes on to the next sweep.
    """
    found, alive = [], list(range(width))
    while len(alive) > 1:
        left, right = tuple(alive[0:len(alive) - 1:2]), tuple(alive[1::2])
        found.append((left, right))
        alive = alive[::2]
    return tuple(found)


def rotations(angles: torch.Tensor) -> torch.Tensor:
    """[pairs, 2, 2]: (x, y) -> (cos x - sin y, sin x + cos y)."""
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


@cache
def _places(width: int) -> tuple[int, ...]:
    """Where each index stands behind one another: the second of each pair, sweep by sweep, and the index that is left."""
    ended = [i for _, right in sweeps(width) for i in right] + [0]
    return tuple(sorted(range(width), key=ended.__getitem__))


def transposed(x: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """R' x for x [.., width], with R = P_1 P_2 ..., the product of all sweeps of `blocks` [width - 1, 2, 2]; never built.

    A sweep ends the second of each pair, so that what is turned halves: two passes over x in all, not one a sweep.
    """
    ended, at, width = [], 0, x.shape[-1]
    for left, _ in sweeps(width):
        m, pairs = blocks[at:at + len(left)], 2 * len(left)
        at += len(left)
        a, b = x[..., 0:pairs:2], x[..., 1:pairs:2]
        ended.append(m[:, 0, 1] * a + m[:, 1, 1] * b)
        x = torch.cat([m[:, 0, 0] * a + m[:, 1, 0] * b, x[..., pairs:]], -1)
    return torch.cat([*ended, x], -1).index_select(-1, torch.tensor(_places(width), device=x.device))


@dataclass
class GivensConfig(PeftConfig):
    """quasi: free 2 x 2 maps instead of rotations; scaling: a factor for each input besides."""

    target_modules: list[str] = field(default_factory=list)
    exclude_modules: list[str] | None = None
    modules_to_save: list[str] | None = None
    quasi: bool = False
    scaling: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = "LUTHIER_GIVENS"  # type: ignore[assignment]


class Givens(nn.Module):
    """The trained numbers of one layer: angles [width - 1] or maps [width - 1, 2, 2], and factors [width]."""

    def __init__(self, width: int, config: GivensConfig, like: torch.Tensor) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        pairs = width - 1
        start = torch.eye(2, **options).repeat(pairs, 1, 1) if config.quasi else torch.zeros(pairs, **options)
        self.turns = nn.Parameter(start)
        self.factors = nn.Parameter(torch.ones(width, **options)) if config.scaling else None

    def blocks(self) -> torch.Tensor:
        """[width - 1, 2, 2]."""
        return rotations(self.turns) if self.turns.dim() == 1 else self.turns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """R' x, scaled."""
        x = transposed(x.to(self.turns.dtype), self.blocks())
        return x if self.factors is None else self.factors * x

    def penalty(self) -> torch.Tensor:
        """Sum of the squared inner products of the two columns of every map."""
        m = self.blocks()
        return (m[:, 0, 0] * m[:, 0, 1] + m[:, 1, 0] * m[:, 1, 1]).square().sum()


class Turned(nn.Module, BaseTunerLayer):
    """A linear layer whose input is turned first."""

    adapter_layer_names = ("givens_layers",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: GivensConfig, like: torch.Tensor) -> None:
        super().__init__()
        self.base_layer = base_layer
        width = base_layer.weight.shape[0] if isinstance(base_layer, Conv1D) else base_layer.in_features
        self.givens_layers = nn.ModuleDict({adapter_name: Givens(int(width), config, like)})  # type: ignore[arg-type]
        self._active_adapter = adapter_name
        self.merged_adapters: list[str] = []
        self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    def forward(self, x: torch.Tensor, *given: Any, **named: Any) -> Any:
        """W (R' x)."""
        if not (self.disable_adapters or self.merged):
            for name in self.active_adapters:
                x = self.givens_layers[name](x).to(x.dtype)
        return self.base_layer(x, *given, **named)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """W becomes W R', in float32 and rounded once."""
        layer = self.base_layer
        with torch.no_grad():
            for name in adapter_names or self.active_adapters:
                weight: torch.Tensor = layer.weight.T if isinstance(layer, Conv1D) else layer.weight  # type: ignore[assignment]
                givens = self.givens_layers[name].float()
                turned = weight.float() @ givens(torch.eye(weight.shape[1], device=weight.device)).T
                weight.copy_(turned.to(weight.dtype))
                self.merged_adapters.append(name)


class GivensModel(LayerTuner):
    """The seam for `Turned`."""

    prefix: str = "givens_"
    tuner_layer_cls = Turned


register("LUTHIER_GIVENS", GivensConfig, GivensModel)
