"""Reordered weights answer as plain ones do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.core.component import build
from luthier.core.rng import Rng
from luthier.engine import quick
from luthier.engine.generation import generate
from luthier.engine.models import load_base
from luthier.engine.scoring import score
from tests.engine.test_packing import rows_of

pytestmark = pytest.mark.skipif(quick.speedup() == 0, reason="this processor has no kernel for reordered bfloat16 weights")


@pytest.mark.parametrize("rows", [1, 2, 4, 7, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_that_of_float32(rows, bias):
    torch.manual_seed(0)
    linear = nn.Linear(96, 160, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(2, rows, 96, dtype=torch.bfloat16)
    expected = nn.functional.linear(x.float(), linear.weight.float(), linear.bias.float() if bias else None)
    mine = quick.QuickLinear(linear)(x)
    assert mine.shape == (2, rows, 160) and mine.dtype == torch.bfloat16
    assert torch.allclose(mine.float(), expected, rtol=1e-2, atol=1e-2)


def test_a_quick_model_scores_and_writes_as_before(pico):
    plain, fast = load_base(pico, torch.bfloat16), quick.quicken(load_base(pico, torch.bfloat16))
    assert sum(isinstance(m, quick.QuickLinear) for m in fast.module.modules()) == 14, "seven a layer"
    assert type(fast.module.get_output_embeddings()) is nn.Linear
    prompts = rows_of((5, 9, 20, 3), seed=1)
    for mine, expected in zip(score(fast, [(p, p[:4]) for p in prompts]), score(plain, [(p, p[:4]) for p in prompts]),
                              strict=True):
        assert mine[0] == pytest.approx(expected[0], abs=0.15)
    decoder = build("decoder", "greedy:max_new_tokens=4")
    written = generate({"policy": fast}, prompts, decoder, Rng(0))
    assert isinstance(fast.quick_head, quick.QuickLinear) and len(written) == 4
    alone = [generate({"policy": fast}, [p], decoder, Rng(0))[0] for p in prompts]
    assert [a.tokens for a in alone] == [w.tokens for w in written]


@pytest.mark.parametrize("spec", [{"r": 4}, {"r": 4, "use_dora": True}])
def test_a_model_with_an_adapter_answers_as_before(pico, spec):
    import peft

    def made():
        model = load_base(pico, torch.bfloat16)
        torch.manual_seed(1)
        config = peft.LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False, **spec)
        model.module = peft.get_peft_model(model.module, config, autocast_adapter_dtype=False).eval().requires_grad_(False)
        return model

    pairs = [(p, p[:4]) for p in rows_of((5, 9, 20), seed=1)]
    fast = quick.quicken(made())
    assert quick.quickened(fast) == ("use_dora" not in spec)
    for mine, expected in zip(score(fast, pairs), score(made(), pairs), strict=True):
        assert mine[0] == pytest.approx(expected[0], abs=0.15)


def test_what_is_trained_or_wrapped_is_left_alone():
    assert not quick.fits(nn.Linear(4, 4, dtype=torch.bfloat16))
    assert not quick.fits(nn.Linear(4, 4).requires_grad_(False))
    assert quick.fits(nn.Linear(4, 4, dtype=torch.bfloat16).requires_grad_(False))


def test_a_model_that_looks_at_its_layers_weights_answers_all_the_same(pico_encoder_decoder):
    plain = load_base(pico_encoder_decoder, torch.bfloat16)
    fast = quick.quicken(load_base(pico_encoder_decoder, torch.bfloat16))
    assert any(isinstance(m, quick.QuickLinear) for m in fast.module.modules())
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        mine, expected = (m.module(input_ids=ids, decoder_input_ids=ids).logits.float() for m in (fast, plain))
    assert torch.allclose(mine, expected, rtol=5e-2, atol=5e-2 * float(expected.abs().max()))
