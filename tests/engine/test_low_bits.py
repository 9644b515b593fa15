"""Bases in few bits: packing, the layer, the file, and what may not be done with an artifact that stands on one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from luthier.core.errors import UserError
from luthier.engine import low_bits
from luthier.engine.low_bits import LowBitBase, LowBitLinear, LowBits, pack, unpack
from luthier.engine.models import load_base

GENERATOR = torch.Generator().manual_seed(0)
LEVELS = torch.tensor([-1.0, -0.25, 0.25, 1.0])


def a_matrix(rows: int = 5, columns: int = 11, group: int = 4) -> LowBits:
    groups = -(-columns // group)
    make = torch.Generator().manual_seed(1)
    return LowBits.of(torch.randint(0, 4, (rows, columns), generator=make), torch.rand(rows, groups, generator=make) + 0.5,
                      torch.randint(0, 3, (rows, groups), generator=make).to(torch.uint8), LEVELS, 2, group)


@pytest.mark.oracle(seed=180, clause=5, against="the codes themselves")
@pytest.mark.oracle(seed=111, clause=3, against="the codes themselves")
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("columns", [1, 7, 8, 16, 63])
def test_what_is_packed_is_unpacked(bits, columns):
    codes = torch.randint(0, 1 << bits, (3, columns), generator=GENERATOR)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (3, -(-columns // 8) * bits)
    assert torch.equal(unpack(packed, bits, columns), codes)


def test_four_bits_are_two_nibbles_the_first_one_low():
    assert pack(torch.tensor([[1, 2, 15, 0, 3, 4, 5, 6]]), 4).tolist() == [[0x21, 0x0F, 0x43, 0x65]]


def test_a_matrix_is_levels_less_zeros_times_scales():
    matrix = a_matrix()
    codes, dense = unpack(matrix.codes, 2, 11), matrix.dense()
    for row in range(5):
        for column in range(11):
            group = column // 4
            wanted = (LEVELS[codes[row, column]] - matrix.zeros[row, group]) * matrix.scales[row, group]
            assert dense[row, column] == pytest.approx(float(wanted), abs=1e-6)


def test_the_layer_computes_as_its_matrix_does_and_hands_gradients_on():
    order, weak = torch.randperm(13, generator=GENERATOR), torch.randn(5, 2, generator=GENERATOR)
    layer = LowBitLinear(a_matrix(), nn.Parameter(torch.randn(5, generator=GENERATOR)), weak, order)
    plain = nn.Linear(13, 5)
    plain.weight, plain.bias = nn.Parameter(layer.dense()), layer.bias
    x = torch.randn(2, 3, 13, generator=GENERATOR)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(ours).square().sum().backward()
    plain(theirs).square().sum().backward()
    assert torch.allclose(layer(x), plain(x), atol=1e-5) and torch.allclose(ours.grad, theirs.grad, atol=1e-3)
    assert torch.equal(layer.weight, layer.dense()), "readers find the matrix"
    again = copy.deepcopy(layer)
    assert torch.equal(again(x), layer(x)) and again.codes.data_ptr() != layer.codes.data_ptr()


def test_learned_scales_get_the_gradient_of_the_dense_matrix():
    layer, x = LowBitLinear(a_matrix()), torch.randn(4, 11, generator=GENERATOR)
    scales = layer.learn_scales()
    layer(x).square().sum().backward()
    with torch.no_grad():
        for place in ((0, 0), (3, 2)):
            ways = []
            for step in (1e-3, -1e-3):
                scales[place] += step
                ways.append(float(layer(x).double().square().sum()))
                scales[place] -= step
            assert float(scales.grad[place]) == pytest.approx((ways[0] - ways[1]) / 2e-3, rel=1e-2, abs=1e-2)


def test_nothing_is_merged_into_it_silently(pico):
    from peft import LoraConfig, get_peft_model

    model = load_base(pico)
    name = "model.layers.0.self_attn.q_proj"
    weight = model.module.get_submodule(name).weight
    low_bits.put(model, name, LowBits.whole(weight.detach()))
    wrapped = get_peft_model(model.module, LoraConfig(r=2, target_modules=[name]))
    low_bits.no_merging(wrapped)
    with pytest.raises(UserError, match="can't be merged into weights in few bits. luthier export RUN --to model"):
        wrapped.merge_and_unload()


def test_the_file_holds_all_of_it(tmp_path, pico):
    model = load_base(pico)
    name, norm = "model.layers.0.self_attn.q_proj", "model.norm.weight"
    matrix, order = a_matrix(64, 62, 8), torch.randperm(64, generator=GENERATOR)
    base = LowBitBase({name: matrix}, {name: order}, {name: 2}, {(norm, 0): order})
    base.save(tmp_path / low_bits.FILE)
    again = LowBitBase.read(tmp_path / low_bits.FILE)
    assert again.fingerprint == base.fingerprint and again.weak == base.weak
    assert torch.equal(again.layers[name].dense(), matrix.dense()) and again.layers[name].about() == matrix.about()
    other = load_base(pico)
    with torch.no_grad():
        for m in (model, other):
            m.module.model.norm.weight.copy_(torch.arange(64.0))
    kept = model.module.model.norm.weight
    again.put(model)
    layer = low_bits.layers_of(model.module)[name]
    assert torch.equal(layer.order, order) and torch.equal(layer.weak, torch.zeros(64, 2))
    assert torch.equal(model.module.model.norm.weight, other.module.model.norm.weight[order])
    assert torch.equal(kept, torch.arange(64.0)), "a model that shares the tensor keeps it"
    with pytest.raises(UserError, match="trained on a base in few bits .* would be a wrong model"):
        low_bits.check(other, tmp_path)
    low_bits.check(model, tmp_path)
    with pytest.raises(UserError, match="Export it .luthier export RUN --to model"):
        low_bits.refuse(tmp_path)


def test_what_does_not_fit_is_refused(pico):
    model = load_base(pico)
    for name in ("model.layers.9.mlp.up_proj", "model.layers.0.mlp.up_proj"):
        with pytest.raises(UserError, match=f"do not fit pico: '{name}' has no place there"):
            LowBitBase({name: a_matrix()}).put(model)
