"""Tensor files: what is read back by the format's own library is what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.engine.tensors import TYPES, write_tensors


def _tensors() -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    found = {f"of {dtype}": torch.randint(0, 2, (3, 5), generator=made).to(dtype) for dtype in TYPES}
    whole = torch.randn(6, 4, generator=made)
    return {**found, "whole": whole, "a view": whole[::2], "turned": whole.T, "one": torch.tensor(7), "none": torch.empty(0, 3),
            "ümlaut/é": torch.arange(3)}


def test_the_formats_own_library_reads_what_was_written(tmp_path: Path):
    tensors = _tensors()
    write_tensors(tmp_path / "x.safetensors", tensors)
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name


def test_the_data_are_as_the_formats_own_library_lays_them_down(tmp_path: Path):
    tensors = {"b": torch.randn(3), "a": torch.randn(2, 2), "short": torch.randn(5).bfloat16(), "count": torch.arange(3)}
    write_tensors(tmp_path / "ours", tensors)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_type_without_a_name_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(TypeError, match=r"y is torch.complex128"):
        write_tensors(tmp_path / "x", {"y": torch.zeros(2, dtype=torch.complex128)})
    assert not (tmp_path / "x").exists()
