"""full with frozen bottoms: bit for bit, released counts, kept states, the pilot's choice and its resume."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.engine.models import Model, add_tuned, load_base
from luthier.techniques.methods.full import chosen, freeze
from tests.contracts import dummies
from tests.contracts.workbench import encode, examples, make_loop, short_fit, training_data, tuned_logits


@pytest.mark.oracle(seed=52, clause=1, against="the base itself, bit for bit")
@pytest.mark.parametrize("architecture", ["decoder", "encoder", "encoder-decoder"])
def test_frozen_tensors_stay_bit_for_bit_and_have_no_gradient(architecture, bases, make_ctx):
    base = bases[architecture]
    inputs = {"base": base, "examples": training_data(make_ctx("examples"))}
    fit = short_fit(architecture, method="full:freeze_bottom=1", regularizers=("dummy-spy",))
    artifact = fit.run(inputs, make_ctx("fit", inputs))
    own, tuned = (dict(m.module.named_parameters()) for m in (load_base(base), add_tuned(load_base(base), artifact)))
    moved = {n for n in own if not torch.equal(own[n], tuned[n])}
    low = {"decoder": ("embed_tokens", "layers.0."), "encoder": ("embeddings", "layer.0.", "pooler"),
           "encoder-decoder": ("shared", "block.0.")}[architecture]
    assert moved and not any(part in n for n in moved for part in low)
    top = {"decoder": "layers.1.", "encoder": "layer.1.", "encoder-decoder": "block.1."}[architecture]
    assert any(top in n for n in moved) and moved == {n for n in dummies.SPIED["moved"] if not n.startswith("examples.")}
    model = build("method", "full:freeze_bottom=1").prepare(load_base(base), None)
    assert all(p.grad is None and not p.requires_grad for n, p in model.module.named_parameters() if any(x in n for x in low))


@pytest.mark.oracle(seed=52, clause=1, against="the released counts of trainable weights")
def test_counts_of_the_released_encoder():
    from transformers import RobertaConfig, RobertaModel

    with torch.device("meta"):
        module = RobertaModel(RobertaConfig(vocab_size=51416, max_position_embeddings=1026, type_vocab_size=10))
    counts = {}
    for count in (-1, 0, 11):
        module.requires_grad_(True)
        model = Model(module, None, "encoder", "", "unixcoder", 512, None)  # type: ignore[arg-type]
        assert freeze(model, count) == 12
        counts[count] = round(sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6, 1)
    assert counts == {-1: 125.9, 0: 85.1, 11: 7.1}


@pytest.mark.oracle(seed=52, clause=2, against="full fine-tuning without the setting")
def test_minus_one_is_full_tuning(pico, make_ctx):
    curves = []
    for spec in ("full", "full:freeze_bottom=-1"):
        model = build("method", spec).prepare(load_base(pico), None)
        assert all(p.requires_grad for p in model.module.parameters())
        objective = build("objective", "supervised")
        loop = make_loop(model, objective, encode(objective, model, examples(8)), make_ctx(f"{len(curves)}/fit"))
        loop.train()
        curves.append([r["loss"] for r in loop.curve])
    assert curves[0] == curves[1]
    assert build("method", "full").identity == build("method", "full:freeze_bottom=-1").identity


@pytest.mark.oracle(seed=52, clause=3, against="the same training without kept states")
def test_kept_and_computed_states_give_equal_losses(pico, make_ctx):
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    losses = {}
    for mode in ("on", "off"):
        fit = short_fit("decoder", method="full:freeze_bottom=1", cache_frozen=mode, length={"steps": 4})
        artifact = fit.run(inputs, make_ctx(f"{mode}/fit", inputs))
        assert artifact.meta["fit"]["decisions"]["cache_frozen"]["below"] == 1
        losses[mode] = [r["loss"] for r in read_lines(artifact.folder / "curve.jsonl")]
    assert losses["on"] == pytest.approx(losses["off"], abs=1e-6) and len(losses["on"]) == 4


@pytest.mark.parametrize(("alike", "least", "count"), [
    ([1, 1, 0.95, 0.8], 0.9, 2), ([1, 0.8, 0.95, 0.95], 0.9, 0), ([0.5, 1, 1], 0.9, -1), ([1, 1, 1], 0.9, 1),
    ([1, 0.9, 0.5], 0.9, 1)])
def test_the_largest_bottom_that_stayed_alike(alike, least, count):
    assert chosen(alike, least) == count


def test_auto_begins_again_and_trains_what_is_left(pico, make_ctx):
    told: list[str] = []
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    method = "full:freeze_bottom=auto,pilot=0.5,alike=0.0001"
    ctx = make_ctx("fit", inputs)
    ctx.log = told.append
    fit = short_fit("decoder", method=method, length={"steps": 4}, learning_rate=1e-3, schedule="constant")
    artifact = fit.run(inputs, ctx)
    assert any("freeze_bottom = 1 of 2 layers; RSA after the pilot" in line for line in told)
    own, tuned = (dict(m.module.named_parameters()) for m in (load_base(pico), add_tuned(load_base(pico), artifact)))
    assert all(torch.equal(own[n], tuned[n]) for n in own if "layers.0." in n or "embed_tokens" in n)
    # What it leaves is two steps of the rest from the base: the pilot left no trace but the place in the order of rows.
    far = max(float((own[n] - tuned[n]).abs().max()) for n in own)
    assert 0 < far <= 2.1e-3, "two steps of Adam at 1e-3, not four"
    assert tuned_logits(add_tuned(load_base(pico), artifact)).isfinite().all()


def test_more_than_there_is_trains_what_comes_after_and_says_so(pico):
    told: list[str] = []
    model = build("method", "full:freeze_bottom=7").prepare(load_base(pico), SimpleNamespace(log=told.append))
    left = {n for n, p in model.module.named_parameters() if p.requires_grad}
    assert left and not any("layers." in n for n in left) and "has 2 layers: only what comes after them" in told[0]


def test_bad_numbers_and_models_without_layers_are_refused(pico, monkeypatch):
    with pytest.raises((UserError, ValidationError), match="legal are -1"):
        build("method", "full:freeze_bottom=-2")
    monkeypatch.setattr("luthier.engine.layers.layer_stacks", lambda model: [])
    with pytest.raises(UserError, match=r"finds no stack of layers in pico.*Its modules: model, model.embed_tokens"):
        build("method", "full:freeze_bottom=1").prepare(load_base(pico), None)
