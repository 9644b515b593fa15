"""A second role without a second model: the adapter switched off, found to hold by trying."""

from __future__ import annotations

import json

import pytest
import torch

from luthier.core.component import build
from luthier.core.files import read_lines
from luthier.core.step import FitCtx
from luthier.engine.forward import Forward
from luthier.engine.models import load_base
from luthier.engine.roles import adapter_comes_off, adapter_off
from tests.contracts.workbench import encode, examples, make_batch, short_fit, training_data


def prepared(base, make_ctx, method: str):
    """A base with a method on it, its trained weights moved."""
    torch.manual_seed(0)
    model = build("method", method).prepare(load_base(base), FitCtx(**make_ctx("prepare").__dict__))
    with torch.no_grad():
        for i, p in enumerate(p for p in model.module.parameters() if p.requires_grad):
            p.add_(0.1 * torch.cos(torch.arange(p.numel()).view(p.shape) + i))
    return model


@pytest.mark.parametrize("architecture", ["decoder", "encoder-decoder"])
def test_without_its_adapter_the_model_is_the_base_bit_for_bit(bases, make_ctx, architecture):
    model = prepared(bases[architecture], make_ctx, "lora:dropout=0.3")
    base = load_base(bases[architecture])
    batch = make_batch(encode(build("objective", "supervised"), base, examples(4)), base)["input"]
    model.module.train()
    run = Forward({"policy": model, "reference": model, "base": base}, bare=("reference",))
    bare = run("reference", batch).nll()
    assert torch.equal(bare, run("base", batch).nll()) and not bare.requires_grad
    assert not torch.allclose(bare, run("policy", batch).nll(), atol=1e-3)
    assert run("policy", batch).nll().requires_grad and model.module.training


def test_switching_off_leaves_frozen_weights_frozen(pico, make_ctx):
    model = prepared(pico, make_ctx, "lora")
    for name, p in model.module.named_parameters():
        if "lora_A" in name:
            p.requires_grad_(False)
    flags = {n: p.requires_grad for n, p in model.module.named_parameters()}
    with adapter_off(model):
        pass
    assert {n: p.requires_grad for n, p in model.module.named_parameters()} == flags


@pytest.mark.parametrize("method, comes_off", [
    ("lora", True), ("peft:{type: IA3}", True), ("peft:{type: LORA, bias: all}", False), ("full", False)])
def test_whether_an_adapter_comes_off_is_found_by_trying(pico, make_ctx, method, comes_off):
    model = prepared(pico, make_ctx, method)
    if "bias" in method:  # this model has no biases: one norm trained beside the adapter stays on in the same way
        next(p for n, p in model.module.named_parameters() if n.endswith("norm.weight")).requires_grad_(True)
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    assert adapter_comes_off(model) is comes_off
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters()), "put back exactly"


@pytest.mark.parametrize("method, loads", [("lora", 0), ("full", 1)])
def test_an_adapter_needs_no_second_copy(pico, make_ctx, engine, monkeypatch, method, loads):
    loaded = []
    load = type(engine).load
    monkeypatch.setattr(type(engine), "load", lambda *a, **k: loaded.append(1) or load(*a, **k))
    task = {"data": "examples.train", "objective": "dpo:reference_once=false"}
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    fit = short_fit("decoder", tasks=(task,), method=method, learning_rate=1e-3)
    fit.run(inputs, make_ctx("fit", inputs))
    assert len(loaded) == loads
    once = short_fit("decoder", tasks=({"data": "examples.train", "objective": "dpo"},), method=method)
    once.run(inputs, make_ctx("once", inputs))
    assert len(loaded) == loads, "with the reference asked once, nothing is loaded for either method"


@pytest.mark.parametrize("objective", ["dpo", "dpo:reference_once=false"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_preferences_are_learned_shown_and_saved(pico, make_ctx, objective, method):
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    fit = short_fit("decoder", tasks=({"data": "examples.train", "objective": objective},), method=method,
                    learning_rate=3e-3 if method == "full" else 1e-2, length={"steps": 12},
                    streams={"validation": "examples.dev"})
    ctx = make_ctx("fit", inputs)
    artifact = fit.run(inputs, ctx)
    curve = read_lines(artifact.folder / "curve.jsonl")
    assert curve[0]["loss"] == pytest.approx(0.6931, abs=1e-3) and abs(curve[0]["margin"]) < 1e-3
    assert curve[-1]["loss"] < 0.4 and curve[-1]["margin"] > 1 and curve[-1]["accuracy"] == 1
    assert all(r.verdict != "differs" for r in fit.receipts(inputs, artifact, ctx))
    kept = [json.loads(line)["key"] for line in (ctx.folder / "journal.jsonl").read_text().splitlines()]
    assert any(key.startswith("constants/") for key in kept) == (objective == "dpo")
