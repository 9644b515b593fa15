"""Tensor files, written one tensor after the other.

The format is that of safetensors: eight bytes with the length of a JSON header, the header, which names each tensor's
type, shape and place, and the bytes. Whoever writes the bytes one tensor at a time needs no second copy of a large
state, and tensors that share memory need none at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# Names that the format gives to types, from the wide to the narrow: the order in which tensors are laid down, so that
# each begins at a multiple of its own size.
TYPES = {
    torch.float64: "F64", torch.int64: "I64", torch.complex64: "C64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16", torch.uint8: "U8", torch.int8: "I8", torch.bool: "BOOL"}
ALIGNED = 8


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file; in memory is, beside the tensors, at most the bytes of one of them.

    Raises:
        TypeError: a type that the format, or this table, has no name for.
    """
    order = list(TYPES)
    for name, tensor in tensors.items():
        if tensor.dtype not in TYPES:
            raise TypeError(f"{name} is {tensor.dtype}; a tensor file holds {', '.join(TYPES.values())}")
    names = sorted(tensors, key=lambda n: (order.index(tensors[n].dtype), n))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNED)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            _write(file, tensors[name])
        file.flush()
        os.fsync(file.fileno())


def _write(file: Any, tensor: torch.Tensor) -> None:
    if tensor.numel():
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        file.write(flat.view(torch.uint8).numpy().data)
