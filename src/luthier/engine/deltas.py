"""Deltas on a named base, in four codes that one file may mix.

=============  ==========================================================================================================
dense          NAME: the tensor itself takes the base's place
sparse         NAME:at [n] int64, NAME:values [n]: these entries, counted through the flattened tensor, take the base's
               place; NAME:was [n], where it is kept, are the base's own, so that nothing is lost. Or NAME:by [n] float32:
               these differences are added, so that several deltas can be (`engine/sparse.py`)
packed         NAME:bits [k, ceil(n / 8)] uint8, NAME:scales [k] float32: base + sum over k of scale_k · S_k, where S_k is +1
               at a bit of 1 and -1 at a bit of 0, for the n entries of the flattened tensor, first entry in the lowest bit
factored       NAME:up [out, r], NAME:down [r, in]: base + up · down
=============  ==========================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from luthier.core.errors import UserError
from luthier.engine.tensors import Spec, specs_of

FILE = "delta.safetensors"
CODES = ("at", "values", "was", "by", "bits", "scales", "up", "down")


def pack_bits(positive: torch.Tensor) -> torch.Tensor:
    """[ceil(n / 8)] uint8 from n truths of any shape: entry i is bit i mod 8 of byte i div 8; the last byte ends in zeros."""
    return torch.from_numpy(np.packbits(positive.reshape(-1).numpy(), bitorder="little"))


def unpack_bits(bits: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Truths of `shape` from what `pack_bits` made."""
    count = int(np.prod(shape, dtype=np.int64))
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count, bitorder="little")).bool().reshape(shape)


def signs(bits: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """+1 and -1 in float32 of `shape` from packed bits."""
    return unpack_bits(bits, shape).float().mul_(2).sub_(1)


def product(x: torch.Tensor, base: torch.Tensor, bits: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """[…, out]: x (W + sum_k scale_k S_k)^T with the bits unpacked one matrix at a time; no tuned weight is kept.

    x: […, in]; base: W [out, in]; bits [k, ceil(out · in / 8)]; scales [k]. Several deltas of one base may share the first
    product.
    """
    y = x @ base.T
    for plane, scale in zip(bits, scales, strict=True):
        y = y + scale.to(x.dtype) * (x @ signs(plane, tuple(base.shape)).to(x.dtype).T)
    return y


def restored(name: str, base: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The tuned tensor from the base's and the parts of its code.

    Raises:
        UserError: the parts do not fit the base's shape.
    """
    if "" in parts:
        tuned = parts[""]
        if tuned.shape != base.shape:
            raise UserError(f"{name} is {tuple(tuned.shape)} in the delta and {tuple(base.shape)} in the base.")
        return tuned
    if "at" in parts:
        at, tuned = parts["at"], base.clone().reshape(-1)
        if len(at) and int(at.max()) >= tuned.numel():
            raise UserError(f"{name} has an entry {int(at.max())} in the delta, and {tuned.numel()} entries in the base.")
        tuned[at] = (tuned[at].float() + parts["by"] if "by" in parts else parts["values"]).to(tuned.dtype)
        return tuned.reshape(base.shape)
    if "up" in parts:
        change = parts["up"].float() @ parts["down"].float()
        if change.shape != base.shape:
            raise UserError(f"{name} is changed by a matrix {tuple(change.shape)} in the delta and is {tuple(base.shape)} in "
                            "the base.")
        return base.float() + change
    if parts["bits"].shape[1] != -(-base.numel() // 8):
        raise UserError(f"{name} has {parts['bits'].shape[1]} bytes a plane of signs in the delta; the {base.numel()} entries "
                        f"of the base need {-(-base.numel() // 8)}.")
    total = base.float().clone()
    for plane, scale in zip(parts["bits"], parts["scales"], strict=True):
        total.add_(signs(plane, tuple(base.shape)), alpha=float(scale))
    return total


class Delta:
    """A delta file: its tensors by the name that they have in the base."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.parts: dict[str, list[str]] = {}
        self.specs: dict[str, Spec] = specs_of(self.path)
        for stored in self.specs:
            name, _, code = stored.partition(":")
            self.parts.setdefault(name, []).append(code)

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The parts of one tensor by code; the code of a dense one is empty."""
        with safe_open(self.path, framework="pt") as file:
            return {code: file.get_tensor(f"{name}:{code}" if code else name) for code in self.parts[name]}

    def apply(self, name: str, base: torch.Tensor) -> torch.Tensor:
        """The tuned tensor; the base's own where the delta does not name it."""
        return restored(name, base, self.part(name)) if name in self.parts else base
