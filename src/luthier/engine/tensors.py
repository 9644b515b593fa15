"""Tensor files, written one tensor after the other.

The format is that of safetensors: eight bytes with the length of a JSON header, the header, which names each tensor's
type, shape and place, and the bytes. Whoever writes the bytes one tensor at a time needs no second copy of a large
state, and tensors that share memory need none at all.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luthier.core.errors import UserError

# Names that the format gives to types, from the wide to the narrow: the order in which tensors are laid down, so that
# each begins at a multiple of its own size.
TYPES = {
    torch.float64: "F64", torch.int64: "I64", torch.complex64: "C64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16", torch.uint8: "U8", torch.int8: "I8", torch.bool: "BOOL"}
ALIGNED = 8


@dataclass(frozen=True)
class Spec:
    """What is known of a tensor before it is made or read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """How many it takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Spec:
        """A tensor's own."""
        return cls(tensor.dtype, tuple(tensor.shape))


class TensorFile:
    """A safetensors file whose tensors are written one at a time, in any order, within a `with` block.

    Raises:
        TypeError: a type that the format, or this table, has no name for.
    """

    def __init__(self, path: Path, specs: Mapping[str, Spec]) -> None:
        order = list(TYPES)
        for name, spec in specs.items():
            if spec.dtype not in TYPES:
                raise TypeError(f"{name} is {spec.dtype}; a tensor file holds {', '.join(TYPES.values())}")
        self._places: dict[str, int] = {}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name in sorted(specs, key=lambda n: (order.index(specs[n].dtype), n)):
            spec = specs[name]
            header[name] = {"dtype": TYPES[spec.dtype], "shape": list(spec.shape), "data_offsets": [at, at + spec.bytes]}
            self._places[name] = at
            at += spec.bytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % ALIGNED)
        self._begin = 8 + len(text)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little"))
        self._file.write(text)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor to its place; in memory is, beside it, at most a copy of it."""
        if tensor.numel():
            flat = tensor.detach().to("cpu").contiguous().reshape(-1)
            self._file.seek(self._begin + self._places[name])
            self._file.write(flat.view(torch.uint8).numpy().data)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file; in memory is, beside the tensors, at most the bytes of one of them.

    Raises:
        TypeError: a type that the format, or this table, has no name for.
    """
    with TensorFile(path, {name: Spec.of(tensor) for name, tensor in tensors.items()}) as file:
        for name, tensor in tensors.items():
            file.put(name, tensor)


def specs_of(path: Path) -> dict[str, Spec]:
    """What a safetensors file holds, from its header alone.

    Raises:
        UserError: the file is torn or none, or has a type that is not in the table.
    """
    from safetensors import SafetensorError, safe_open

    types = {name: dtype for dtype, name in TYPES.items()}
    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                piece = file.get_slice(name)
                if piece.get_dtype() not in types:
                    raise UserError(f"{path}: {name} is {piece.get_dtype()}; legal are {', '.join(types)}.")
                found[name] = Spec(types[piece.get_dtype()], tuple(piece.get_shape()))
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}. Fetch or write it again.") from None
    return found
