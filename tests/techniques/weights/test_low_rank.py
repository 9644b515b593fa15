"""low-rank: nothing of that rank is nearer, factors take the bytes that they may, and all else is kept whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.engine import pico as pico_models
from luthier.engine.deltas import restored
from luthier.pipelines.merging import merge
from luthier.techniques.weights.low_rank import LowRank

NAME = "h.0.w"


def made(rule: str, base: torch.Tensor, tuned: torch.Tensor) -> dict[str, torch.Tensor]:
    """The parts of one matrix, in the types in which they are stored."""
    from luthier.engine.tensors import Spec

    found = build("weight_rule", rule)
    stats = {NAME: found.rank_of(base.shape)}
    specs = found.specs([NAME], {NAME: Spec(base.dtype, tuple(base.shape))}, stats)
    parts = found.apply([NAME], [{NAME: base}, {NAME: tuned}], stats)
    assert {n: tuple(t.shape) for n, t in parts.items()} == {n: spec.shape for n, spec in specs.items()}
    return {n.partition(":")[2]: t.to(specs[n].dtype) for n, t in parts.items()}


@pytest.mark.oracle(clause="the nearest matrix of its rank", against="numpy's singular values (Eckart and Young 1936)")
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_what_is_lost_are_the_smaller_singular_values(rank):
    drawn = torch.Generator().manual_seed(rank)
    base, change = torch.randn(9, 6, generator=drawn), torch.randn(9, 6, generator=drawn)
    parts = made(f"low-rank:rank={rank}", base, base + change)
    left = float((restored(NAME, base, parts) - base - change).norm())
    lost = float(np.sqrt((np.linalg.svd(change.numpy(), compute_uv=False)[rank:] ** 2).sum()))
    assert lost - 1e-4 <= left <= lost + 0.01 * float(change.norm())  # bfloat16 says no more


@pytest.mark.oracle(clause="the bytes that they may take", against="counted bytes")
@pytest.mark.parametrize(("shape", "bits"), [((128, 128), 1), ((384, 128), 1), ((384, 128), 2.5), ((40, 96), 3)])
def test_factors_take_no_more_than_the_bits(shape, bits):
    zeros = torch.zeros(shape)
    parts = made(f"low-rank:bits={bits}", zeros, zeros + 1)
    used = sum(t.numel() * t.element_size() for t in parts.values())
    one_more = used + 2 * sum(shape)
    assert used <= bits * zeros.numel() / 8 < one_more


def test_a_rank_is_at_least_one_and_at_most_the_smaller_side():
    assert LowRank().rank_of((4, 4)) == 1 and LowRank(rank=99).rank_of((4, 7)) == 4


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base `a` and a full tune `b` of it whose norms moved, too."""
    folder = tmp_path_factory.mktemp("low-rank")
    for name in "ab":
        pico_models.make("pico", folder / name)
    tensors = load_file(folder / "b" / "model.safetensors")
    save_file({n: t + 0.01 * torch.randn(t.shape, generator=torch.Generator().manual_seed(i)) if "embed" not in n else t
               for i, (n, t) in enumerate(tensors.items())}, folder / "b" / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_delta_becomes_plain_weights_again(place, tmp_path):
    delta, found = merge([str(place / "b")], "low-rank:rank=2", tmp_path / "t.delta", base=str(place / "a"))
    assert all(f.verdict == "agrees" for f in found)
    stored, tuned = load_file(delta / "delta.safetensors"), load_file(place / "b" / "model.safetensors")
    cut = {n.removesuffix(":up") for n in stored if n.endswith(":up")}
    assert cut and not any("norm" in n or "embed" in n or "lm_head" in n for n in cut)
    assert read_json(delta / "merge.json")["facts"] == {n: {"rank": 2} for n in cut}
    plain, _ = merge([str(delta)], "linear", tmp_path / "plain", base=str(place / "a"))
    base = load_file(place / "a" / "model.safetensors")
    for name, tensor in load_file(plain / "model.safetensors").items():
        if name in cut:
            change = tensor - base[name]
            assert 0 < change.norm() < (tuned[name] - base[name]).norm() and torch.linalg.matrix_rank(change, rtol=1e-3) == 2
        else:
            assert torch.equal(tensor, tuned[name])


def test_what_can_not_be_cut_is_said(place, tmp_path, make_ctx):
    with pytest.raises(UserError, match="no matrix of a numbered layer differs"):
        merge([str(place / "a")], "low-rank", tmp_path / "x", base=str(place / "a"))
    ctx = make_ctx("x")
    ctx.stream = lambda name: iter([([NAME], [{NAME: torch.zeros(8, 8)}, {NAME: torch.full((8, 8), torch.inf)}])])
    with pytest.raises(UserError, match=f"{NAME} changed by numbers that are not finite"):
        build("weight_rule", "low-rank").statistics(ctx)
    with pytest.raises(UserError, match=r"changed by a matrix \(3, 2\) in the delta and is \(2, 2\) in the base"):
        restored(NAME, torch.zeros(2, 2), {"up": torch.zeros(3, 1), "down": torch.zeros(1, 2)})
