"""FLOPs against closed forms written out by hand."""

from __future__ import annotations

import pytest

from luthier.core.component import build
from luthier.core.errors import LuthierError
from luthier.engine.flops import epoch_flops, flop_ratio
from luthier.engine.models import load_base

LENGTHS, LEARNED = [5, 9, 2], 7
PAIRS, CAUSAL = 25 + 81 + 4, 15 + 45 + 3


def closed_form(layers: int, lowest: int, weights: int, width: int, pairs: int, *, kept: bool) -> int:
    """Products of a trained layer cost three times its forward, those of a frozen layer one time or, kept, nothing."""
    one = 2 * weights * sum(LENGTHS) + 4 * width * pairs
    return (layers - lowest) * 3 * one + (0 if kept else lowest * one)


@pytest.mark.parametrize("kept", [True, False])
def test_an_encoder(kept, pico_encoder):
    model = build("method", "layer-freezing:train_last=1").prepare(load_base(pico_encoder), None)
    weights = 4 * 64 * 64 + 2 * 64 * 128
    assert epoch_flops(model, LENGTHS, 0, kept=kept) == closed_form(2, 1, weights, 64, PAIRS, kept=kept)
    assert epoch_flops(model, LENGTHS, 0, everything=True) == closed_form(2, 0, weights, 64, PAIRS, kept=False)
    assert flop_ratio(model, LENGTHS, 0) == pytest.approx(1 / 2)


def test_a_decoder_and_its_vocabulary(pico):
    model = build("method", "layer-freezing:train_last=1").prepare(load_base(pico), None)
    weights = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128
    head = 2 * model.module.lm_head.weight.numel() * LEARNED
    top = closed_form(2, 1, weights, 64, CAUSAL, kept=True) + 2 * head
    full = closed_form(2, 0, weights, 64, CAUSAL, kept=False) + 3 * head
    assert epoch_flops(model, LENGTHS, LEARNED, kept=True) == top
    assert flop_ratio(model, LENGTHS, LEARNED) == pytest.approx(top / full)


def test_a_frozen_weight_in_a_trained_layer_has_no_gradient_of_its_own(pico_encoder):
    model = load_base(pico_encoder)
    layer = model.module.encoder.layer[1]
    layer.output.dense.requires_grad_(True)
    layers_with_gradients = 2 * (2 * (4 * 64 * 64 + 2 * 64 * 128) * sum(LENGTHS)) + 3 * 4 * 64 * PAIRS
    assert epoch_flops(model, LENGTHS, 0, kept=True) == layers_with_gradients + 2 * 64 * 128 * sum(LENGTHS)


def test_two_stacks_are_refused(pico_encoder_decoder):
    with pytest.raises(LuthierError, match="not one stack"):
        epoch_flops(load_base(pico_encoder_decoder), LENGTHS, LEARNED)
