"""Weights in 8 bits: near answers, an identity of their own, nothing silent."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.core.component import build
from luthier.core.rng import Rng
from luthier.engine.generation import generate
from luthier.engine.int8 import FEW_ROWS, Int8Linear
from luthier.engine.scoring import score
from tests.engine.test_packing import rows_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_that_of_the_rounded_weights(dtype, rows, bias):
    torch.manual_seed(0)
    plain = nn.Linear(96, 160, bias=bias, dtype=dtype).requires_grad_(False)
    x = torch.randn(1, rows, 96, dtype=dtype)
    weight = plain.weight.float()
    step = weight.abs().amax(1, keepdim=True) / 127
    rounded = (weight / step).round() * step
    assert (rounded - weight).abs().max() <= step.max() / 2 + 1e-7
    expected = nn.functional.linear(x.float(), rounded, plain.bias.float() if bias else None)
    mine = Int8Linear(plain)(x)
    assert mine.dtype == dtype and mine.shape == (1, rows, 160)
    assert torch.allclose(mine.float(), expected, atol=1e-5 if dtype == torch.float32 else 3e-2)


def test_a_model_in_8_bits_is_near_and_has_another_name(engine, pico):
    own, low = engine.load(pico, dtype=torch.bfloat16), engine.load(pico, dtype=torch.bfloat16, weights="int8")
    assert low.identity == f"{own.identity}-int8" and engine.load(pico, dtype=torch.bfloat16) is own
    assert sum(isinstance(m, Int8Linear) for m in low.module.modules()) == 14
    pairs = [(p, p[:4]) for p in rows_of((5, 9, 20), seed=1)]
    for mine, expected in zip(score(low, pairs), score(own, pairs), strict=True):
        assert mine[0] == pytest.approx(expected[0], abs=0.3) and mine[0] != expected[0]
    written = generate({"policy": low}, [p for p, _ in pairs], build("decoder", "greedy:max_new_tokens=3"), Rng(0))
    assert isinstance(low.quick_head, Int8Linear) and len(written) == 3
