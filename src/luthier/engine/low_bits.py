"""Weights in few bits that a method chose itself: how they are stored, the layer that computes with them, and their file.

A matrix of codes [rows, columns] has a scale and, where its levels are shifted, a zero for each `group` columns of a row:

    w = (levels[code] - zero) scale

What the levels and codes are is the method's affair. The layer makes its matrix anew for each product, forward and backward,
so that no dense copy is kept. Some columns may stay whole (`weak`), behind those in few bits; `order` then says which input
stands where. A base in this form is another base, and an artifact that was trained on it carries it along, in
`low_bits.safetensors`, with the permutations of those tensors of the base that were reordered besides:

    NAME:codes, :scales, :zeros, :levels, :order     of the linear layer NAME      NAME:along0, NAME:along1   of a tensor NAME
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from luthier.core.errors import UserError
from luthier.core.identity import hash_file

if TYPE_CHECKING:
    from luthier.core.artifact import Artifact
    from luthier.core.step import Ctx
    from luthier.engine.models import Model

FILE = "low_bits.safetensors"
WHOLE = 16  # as many bits mean: the numbers themselves
PARTS = ("codes", "scales", "zeros", "levels")


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """[rows, ceil(columns / 8) * bits] uint8 from codes [rows, columns] below 2^bits, 1 to 8 bits.

    Eight codes are `bits` bytes, the first code in the lowest bits; a row's last eight are filled up with zeros.
    """
    rows, columns = codes.shape
    eights = torch.nn.functional.pad(codes.long(), (0, -columns % 8)).view(rows, -1, 8)
    word = (eights << bits * torch.arange(8, device=codes.device)).sum(-1, keepdim=True)
    return (word >> 8 * torch.arange(bits, device=codes.device) & 255).to(torch.uint8).view(rows, -1)


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """[rows, columns] int64, the inverse of `pack`."""
    rows = len(packed)
    word = (packed.view(rows, -1, bits).long() << 8 * torch.arange(bits, device=packed.device)).sum(-1, keepdim=True)
    return (word >> bits * torch.arange(8, device=packed.device) & (1 << bits) - 1).view(rows, -1)[:, :columns]


@dataclass(frozen=True)
class LowBits:
    """One matrix of `shape` [out, in]; stored as [rows, columns] with as many numbers (one row where groups span rows).

    codes: packed uint8 [rows, ..], or the matrix itself where `bits` is 16. scales: float32 [rows, groups]; zeros: uint8 or
    float32 of that shape, or none. levels: float32 [2^bits].
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    levels: torch.Tensor
    bits: int
    group: int
    columns: int
    shape: tuple[int, int]

    @classmethod
    def of(cls, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, levels: torch.Tensor, bits: int,
           group: int, shape: tuple[int, int] | None = None) -> LowBits:
        """From codes [rows, columns] that are not packed yet."""
        rows, columns = codes.shape
        return cls(pack(codes, bits), scales, zeros, levels, bits, group, columns, shape or (rows, columns))

    @classmethod
    def whole(cls, weight: torch.Tensor) -> LowBits:
        """A matrix that is not quantised."""
        none = weight.new_zeros(0, dtype=torch.float32)
        return cls(weight, none, None, none, WHOLE, 1, weight.shape[1], (weight.shape[0], weight.shape[1]))

    def dense(self, scales: torch.Tensor | None = None) -> torch.Tensor:
        """[out, in] float32; with `scales` of the caller's, through which a gradient may flow."""
        if self.bits == WHOLE:
            return self.codes
        own = self.scales if scales is None else scales
        values = self.levels[unpack(self.codes, self.bits, self.columns)]
        if self.zeros is not None:
            values = values - self._spread(self.zeros.float())
        return (values * self._spread(own.float())).view(self.shape)

    def _spread(self, each: torch.Tensor) -> torch.Tensor:
        """[rows, columns] from [rows, groups]."""
        if each.shape[1] == 1:
            return each
        return each.repeat_interleave(self.group, 1)[:, :self.columns]

    @property
    def bytes(self) -> int:
        """What is stored of it; levels, which all layers share, not counted."""
        return sum(t.numel() * t.element_size() for t in (self.codes, self.scales, self.zeros) if t is not None)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by part."""
        return {part: t for part in PARTS if (t := getattr(self, part)) is not None}

    def about(self) -> list[Any]:
        """What the tensors do not say."""
        return [self.bits, self.group, self.columns, list(self.shape)]


class _Product(torch.autograd.Function):
    """x W' with W made anew for the backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: LowBitLinear) -> torch.Tensor:
        ctx.layer = layer
        return linear(x, layer.low_bits.dense().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.layer.low_bits.dense().to(gradient.dtype), None


class LowBitLinear(nn.Linear):
    """A linear layer of `low_bits` [out, in - weak], whole columns `weak` [out, weak] behind them, and a bias.

    order: of the inputs, as the columns have them; as they come where it is none. Scales are a buffer, or a parameter where a
    method learns them. `transposed`: it stands for a layer that keeps its matrix as [in, out].
    """

    transposed = False
    weak: nn.Parameter | None
    order: torch.Tensor | None

    def __init__(self, matrix: LowBits, bias: nn.Parameter | None = None, weak: torch.Tensor | None = None,
                 order: torch.Tensor | None = None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = matrix.shape[0], matrix.shape[1] + (0 if weak is None else weak.shape[1])
        self.bits, self.group, self.columns, self.shape = matrix.bits, matrix.group, matrix.columns, matrix.shape
        for part in PARTS:
            self.register_buffer(part, getattr(matrix, part), persistent=False)
        self.register_buffer("order", order, persistent=False)
        self.register_parameter("bias", bias)
        self.register_parameter("weak", None if weak is None else nn.Parameter(weak, requires_grad=False))

    @property
    def low_bits(self) -> LowBits:
        """The columns in few bits."""
        parts: dict[str, Any] = {part: getattr(self, part) for part in PARTS}
        return LowBits(**{**parts, "scales": parts["scales"].detach()}, bits=self.bits, group=self.group,
                       columns=self.columns, shape=self.shape)

    def learn_scales(self) -> nn.Parameter:
        """Make the scales a parameter."""
        learned = nn.Parameter(getattr(self, "scales").clone())  # noqa: B009  (a buffer until now, a parameter from here on)
        del self._buffers["scales"]
        self.scales = learned
        return learned

    def dense(self) -> torch.Tensor:
        """[out, in] float32: the whole matrix, for inputs as they come."""
        parts = [self.low_bits.dense().float(), *([] if self.weak is None else [self.weak.detach().float()])]
        found = torch.cat(parts, 1)
        return found if self.order is None else found[:, self.order.argsort()]

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The whole matrix, to be read: the layer would not notice what is written to it (`no_merging`)."""
        return self.dense()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., in] to [.., out]."""
        if self.order is not None:
            x = x.index_select(-1, self.order)
        low = x if self.weak is None else x[..., :self.shape[1]]
        if isinstance(self.scales, nn.Parameter):
            out = linear(low, self.low_bits.dense(self.scales).to(x.dtype))
        else:
            out = _Product.apply(low, self)
        if self.weak is not None:
            out = out + linear(x[..., self.shape[1]:], self.weak)
        return out if self.bias is None else out + self.bias


@dataclass
class LowBitBase:
    """The layers of a base that are in few bits, the orders of their inputs, and what was reordered besides.

    weak: how many whole columns a layer has. along: (name of a tensor, dimension) -> permutation.
    """

    layers: dict[str, LowBits] = field(default_factory=dict)
    orders: dict[str, torch.Tensor] = field(default_factory=dict)
    weak: dict[str, int] = field(default_factory=dict)
    along: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def numbers(self) -> int:
        """How many weights are in few bits."""
        return sum(m.shape[0] * m.shape[1] for m in self.layers.values())

    def average_bits(self, element_bits: int) -> float:
        """Stored bits for each weight of these layers; whole columns take `element_bits`."""
        whole = sum(m.shape[0] * self.weak.get(n, 0) for n, m in self.layers.items())
        stored = 8 * sum(m.bytes for m in self.layers.values()) + element_bits * whole
        return stored / (self.numbers + whole)

    def save(self, path: Path) -> None:
        """Write the file; the same one or none stands there if this is interrupted."""
        tensors = {f"{n}:{part}": t.contiguous() for n, m in self.layers.items() for part, t in m.tensors().items()}
        tensors |= {f"{n}:order": t for n, t in self.orders.items()}
        tensors |= {f"{n}:along{dim}": t for (n, dim), t in self.along.items()}
        about = {n: [*m.about(), self.weak.get(n, 0)] for n, m in self.layers.items()}
        work = path.with_suffix(".part")
        # Tensors that several layers share (levels) are written for each: the format has no references.
        # One entry: the order of several is another in each process, and an artifact's bytes must not be.
        save_file({n: t.clone() for n, t in tensors.items()}, work, metadata={"layers": json.dumps(about)})
        os.replace(work, path)
        self.fingerprint = hash_file(path)

    @classmethod
    def read(cls, path: Path) -> LowBitBase:
        """The inverse of `save`."""
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["layers"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        base = cls(fingerprint=hash_file(path))
        for name, (bits, group, columns, shape, weak) in about.items():
            parts: dict[str, Any] = {part: tensors.get(f"{name}:{part}") for part in PARTS}
            base.layers[name] = LowBits(**parts, bits=bits, group=group, columns=columns, shape=tuple(shape))
            base.weak |= {name: weak} if weak else {}
            base.orders |= {name: tensors[f"{name}:order"]} if f"{name}:order" in tensors else {}
        for stored, tensor in tensors.items():
            name, _, part = stored.partition(":")
            if part.startswith("along"):
                base.along[name, int(part.removeprefix("along"))] = tensor
        return base

    def put(self, model: Model) -> None:
        """Reorder a base as it was loaded, and put the layers in their places. Whole columns are still zero.

        Raises:
            UserError: a layer or tensor has no place in this model.
        """
        own = dict(model.module.named_modules())
        for name, matrix in self.layers.items():
            wide = matrix.shape[1] + self.weak.get(name, 0)
            if name not in own or sorted(own[name].weight.shape) != sorted((matrix.shape[0], wide)):
                raise UserError(f"The weights in few bits do not fit {model.name}: '{name}' has no place there.")
        for (name, dim), order in self.along.items():
            reorder(model, name, dim, order)
        for name, matrix in self.layers.items():
            weak = torch.zeros(matrix.shape[0], self.weak[name], dtype=own[name].weight.dtype) if name in self.weak else None
            put(model, name, matrix, weak, self.orders.get(name))
        model.low_bits = self


def put(model: Model, name: str, matrix: LowBits, weak: torch.Tensor | None = None, order: torch.Tensor | None = None) -> None:
    """A layer in few bits in the place of the linear layer `name`, with that one's bias."""
    parent, _, last = name.rpartition(".")
    was = model.module.get_submodule(name)
    device = was.weight.device
    parts: dict[str, Any] = {part: t.to(device) for part, t in matrix.tensors().items()}
    layer = LowBitLinear(replace(matrix, **parts), was.bias, weak if weak is None else weak.to(device),
                         order if order is None else order.to(device))
    layer.transposed = isinstance(was, Conv1D)
    setattr(model.module.get_submodule(parent), last, layer.train(was.training))


def reorder(model: Model, name: str, dim: int, order: torch.Tensor) -> None:
    """The tensor `name` permuted along a dimension, in every module that shares it; other models that do are left alone."""
    parent, _, last = name.rpartition(".")
    was = getattr(model.module.get_submodule(parent), last)
    now = nn.Parameter(was.detach().index_select(dim, order.to(was.device)), requires_grad=False)
    for module in model.module.modules():
        for own, parameter in module._parameters.items():
            if parameter is was:
                module._parameters[own] = now


def once(model: Model, ctx: Ctx | None, make: Callable[[], LowBitBase]) -> LowBitBase:
    """The base in few bits that `make` leaves the model with; a training that goes on reads what its first start made."""
    path = ctx.folder / FILE if ctx is not None and model.device.type != "meta" else None
    if path and path.exists():
        base = LowBitBase.read(path)
        base.put(model)
        return base
    model.low_bits = base = make()
    if path:
        base.save(path)
    return base


def save(model: Model, folder: Path) -> dict[str, Any]:
    """Write what an artifact needs of its base in few bits; what the artifact's record says of it."""
    base: LowBitBase | None = model.low_bits
    if base is None:
        return {}
    base.save(folder / FILE)
    bits = 8 * next(model.module.parameters()).element_size()
    return {"low_bits": {"fingerprint": base.fingerprint, "layers": len(base.layers), "weights": base.numbers,
                         "average_bits": round(base.average_bits(bits), 4)}}


def install(model: Model, artifact: Artifact) -> None:
    """Turn a loaded base into the one that a tuned artifact was trained on."""
    if "low_bits" in artifact.meta:
        LowBitBase.read(artifact.folder / FILE).put(model)


def check(model: Model, folder: Path) -> None:
    """Raises UserError where the weights in `folder` were trained on a base in few bits and the model is not that base."""
    path = folder / FILE
    if path.exists() and (model.low_bits is None or model.low_bits.fingerprint != hash_file(path)):
        raise UserError(f"What is in {folder} was trained on a base in few bits ({FILE} beside it), and {model.name} is not "
                        "that base: together they would be a wrong model.")


def refuse(folder: Path) -> None:
    """Raises UserError where weights can't be read tensor by tensor from a base and an artifact beside it."""
    if (folder / FILE).exists():
        raise UserError(f"What is in {folder} stands on a base in few bits of its own, not on the base's files. Export it "
                        "(luthier export RUN --to model) and use what that gives.")


def whole(model: Model) -> None:
    """Ordinary linear layers with the same weights, such as what is exported has."""
    for name in model.low_bits.layers if model.low_bits else ():
        within = f"base_model.model.{name}" if hasattr(model.module, "peft_config") else name
        layer = model.module.get_submodule(within)
        if not isinstance(layer, LowBitLinear):  # an adapter is around it
            within += ".base_layer"
            layer = layer.base_layer
        parent, _, last = within.rpartition(".")
        plain = Conv1D(layer.out_features, layer.in_features) if layer.transposed else nn.Linear(
            layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        dense = layer.dense()
        plain.weight = nn.Parameter(dense.T.contiguous() if layer.transposed else dense, requires_grad=False)
        plain.bias = layer.bias
        around = model.module.get_submodule(parent)
        setattr(around, last, plain)
        vars(around).pop("merge", None)
    model.low_bits = None


def no_merging(module: nn.Module) -> None:
    """Let adapters on layers in few bits refuse to be merged: what they would add to is made anew for each product."""
    for layer in module.modules():
        if isinstance(getattr(layer, "base_layer", None), LowBitLinear):
            layer.merge = _refused  # type: ignore[assignment]


def _refused(*given: Any, **named: Any) -> None:
    raise UserError("An adapter can't be merged into weights in few bits. luthier export RUN --to model merges it into "
                    "ordinary ones.")


def layers_of(module: nn.Module) -> Mapping[str, LowBitLinear]:
    """The layers in few bits by name."""
    return {name: m for name, m in module.named_modules() if isinstance(m, LowBitLinear)}
