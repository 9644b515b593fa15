"""SMART against plain fine-tuning, gradients by hand, the ball it moves in, and its running mean."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.core.identity import hash_file
from luthier.core.rng import Rng
from luthier.engine.batches import TokenBatch
from luthier.engine.models import load_base
from luthier.techniques.training._passes import apart, divergence, embedded, embedding_rms, predicted
from luthier.techniques.training.smart import Ball, Smooth
from tests.contracts.workbench import encode, examples, make_batch, make_loop, short_fit, training_data
from tests.recorded import far, recorded, wave


def fitted(make_ctx, base, name: str, architecture: str = "encoder", **changed):
    inputs = {"base": base, "examples": training_data(make_ctx(f"{name}/examples"))}
    fit = short_fit(architecture, **{"length": {"steps": 4}, "method": "full", "learning_rate": 1e-3, **changed})
    artifact = fit.run(inputs, make_ctx(f"{name}/fit", inputs))
    return artifact, read_lines(artifact.folder / "curve.jsonl")


def weights(artifact) -> list[str]:
    """Hashes of what was trained; the files beside it tell of further parts of the loss."""
    return [hash_file(artifact.folder / name) for name in ("model.safetensors", "heads.safetensors")]


def smoothing(base, make_ctx, spec: str, rows: int = 6):
    """(hook, run, batch) of a language model and a few rows."""
    objective, model = build("objective", "supervised"), build("method", "full").prepare(load_base(base), None)
    loop = make_loop(model, objective, encode(objective, model, examples(rows)), make_ctx("loop"))
    hook = build("regularizer", spec).start(model, loop.ctx)
    return hook, loop.run, make_batch(encode(objective, model, examples(rows)), model)


def worst(hook, run, batch):
    """(x, x', l of each unit) of the inner maximisation."""
    with apart(run), torch.no_grad():
        x = embedded(run.models["policy"], batch["input"])
        clean = predicted(run, batch["input"], x)
        moved = hook.worst(run, batch, batch["input"], x, clean)
        return x, moved, divergence(predicted(run, batch["input"], moved), clean)


# --- nothing added is nothing changed -------------------------------------------------------------------------------

@pytest.mark.oracle(seed=68, clause=1, against="plain fine-tuning")
@pytest.mark.oracle(seed=68, clause=6, against="plain fine-tuning")
def test_without_weights_or_memory_it_is_plain_fine_tuning(pico_encoder, make_ctx):
    """The encoder trains with dropout, so a stream that was drawn from would show."""
    plain, curve = fitted(make_ctx, pico_encoder, "plain")
    off, same = fitted(make_ctx, pico_encoder, "off", regularizers=("smart:weight=0,mu=0",))
    assert off.identity == plain.identity and [r["loss"] for r in same] == [r["loss"] for r in curve]
    near, other = fitted(make_ctx, pico_encoder, "near", regularizers=("smart:weight=0,mu=1,beta=0,beta_late=0",))
    assert weights(near) == weights(plain), "the model before is the model itself"
    assert all(r["nearness"] == 0 and r["parts"]["proximal"] == 0 for r in other)
    assert [r["parts"]["nll"] for r in other] == [r["loss"] for r in curve]
    _, both = fitted(make_ctx, pico_encoder, "both", regularizers=("smart:beta=0.9,beta_late=0.9",))
    assert both[0]["parts"]["nll"] == curve[0]["loss"], "further passes draw nothing from the stream of dropout"
    assert both[0]["nearness"] == 0 < both[2]["nearness"] and all(r["smoothness"] > 0 for r in both)


@pytest.mark.oracle(seed=68, clause=1, against="plain fine-tuning")
def test_dropout_of_its_own_leaves_the_training_s_as_it_is(pico_encoder, make_ctx):
    _, curve = fitted(make_ctx, pico_encoder, "plain", length={"steps": 1})
    _, other = fitted(make_ctx, pico_encoder, "train", length={"steps": 1}, regularizers=("smart:dropout=train,weight=1e-6",))
    assert other[0]["parts"]["nll"] == curve[0]["loss"] and other[0]["nearness"] > 1e-6, "the masks differ"


# --- the divergence and its gradient --------------------------------------------------------------------------------

@pytest.mark.oracle(seed=68, clause=7, against="closed form: KL(P||Q) + KL(Q||P)")
def test_the_divergence_is_symmetric_and_zero_for_equal_scores():
    make = np.random.default_rng(0)
    a, b = make.normal(size=(5, 4)), make.normal(size=(5, 4))
    p, q = (np.exp(s) / np.exp(s).sum(-1, keepdims=True) for s in (a, b))
    wanted = (p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1)
    one, other = (torch.tensor(s, requires_grad=True) for s in (a, b))
    assert divergence(one, other).tolist() == pytest.approx(wanted.tolist())
    assert divergence(one, other).tolist() == pytest.approx(divergence(other, one).tolist())
    same = divergence(one, one.detach().clone())
    same.sum().backward()
    assert not same.any() and not one.grad.any()
    number = torch.tensor([[2.0], [3.0]])
    assert divergence(number, torch.tensor([[0.5], [3.0]])).tolist() == [2.25, 0.0]


class Linear(nn.Module):
    """Embedded words, and nothing after them: the head is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.config = SimpleNamespace(vocab_size=11)

    def get_input_embeddings(self):
        return self.words


def linear_run(labels: int = 3):
    torch.manual_seed(0)
    model = SimpleNamespace(module=Linear(), heads={"task": nn.Linear(6, labels)}, device=torch.device("cpu"))
    run = SimpleNamespace(models={"policy": model}, frozen=None, measure=lambda **given: None,
                          head=model.heads["task"])

    def forward(role, inputs, embeds):
        return SimpleNamespace(pooled=lambda: (embeds * inputs.mask[:, :, None]).sum(1) / inputs.mask.sum(1, keepdim=True))

    class Run(SimpleNamespace):
        def __call__(self, *given, **named):
            return forward(*given, **named)

    return Run(**run.__dict__), model


def linear_batch():
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    return {"ids": ["a", "b"], "input": TokenBatch(ids, mask, torch.zeros(2, 3, dtype=torch.bool))}


def linear_hook(spec: str, model) -> Smooth:
    ctx = SimpleNamespace(clock=SimpleNamespace(step=0, steps=100), perturbed=lambda moves: None, rng=Rng(0),
                          log=lambda text: None)
    part = build("regularizer", spec)
    rms = embedding_rms(model)
    return Smooth(part, Ball.of(part, rms), rms, model, ctx)


@pytest.mark.oracle(seed=68, clause=2, against="closed form of the gradient of a linear softmax model")
def test_the_inner_gradient_of_a_linear_model_is_worked_by_hand():
    run, model = linear_run()
    hook, batch = linear_hook("smart", model), linear_batch()
    x = model.module.words(batch["input"].ids).detach()
    delta = 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * batch["input"].mask[:, :, None]
    clean = predicted(run, batch["input"], x).detach()
    found = hook.gradient(run, batch["input"], x, delta, clean)
    w, bias = (t.detach().double().numpy() for t in model.heads["task"].parameters())
    for row, length in ((0, 3), (1, 2)):
        means = [(x[row, :length] + d[row, :length]).double().numpy().mean(0) for d in (torch.zeros_like(delta), delta)]
        p, q = (np.exp(w @ m + bias) / np.exp(w @ m + bias).sum() for m in means)
        a = np.log(q) - np.log(p)
        by_score = q * (a - q @ a) + q - p
        wanted = w.T @ by_score / length
        for token in range(3):
            expected = wanted if token < length else np.zeros(6)
            assert found[row, token].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.oracle(seed=68, clause=7, against="the code of SMART's authors")
@pytest.mark.parametrize("record", recorded("smart")["records"], ids=lambda r: f"sigma={r['sigma']}")
def test_released_moves_and_their_smoothness_are_those_of_the_authors_code(record):
    """Along its own gradient: that of another divergence, where the paper and ours go up the one that is added to the loss."""
    rows, tokens, width, labels = recorded("smart")["sizes"]
    head, x = wave(labels, width, shift=1.0, scale=2.0), wave(rows, tokens, width)
    ball = Ball(None, record["sigma"], record["eta"], "inf")
    moved = ball.moved(record["sigma"] * wave(rows, tokens, width, shift=2.0, scale=1.0),
                       torch.tensor(record["gradient"]).view(x.shape), torch.ones(rows, tokens))
    assert far(moved, record["move"]) <= 1e-6
    smoothness = divergence((x + moved).mean(1) @ head.T, x.mean(1) @ head.T)
    assert float(smoothness.mean()) == pytest.approx(record["smoothness"], rel=2e-6)


@pytest.mark.oracle(seed=68, clause=2, against="closed form: a step uphill")
def test_a_step_goes_uphill_and_reaches_the_ball():
    run, model = linear_run()
    batch = linear_batch()
    hook = linear_hook("smart:radius=0.5", model)
    x = model.module.words(batch["input"].ids).detach()
    clean = predicted(run, batch["input"], x).detach()
    moved = hook.worst(run, batch, batch["input"], x, clean)
    delta = hook.ball.sigma * _noise(hook, batch, x)
    g = hook.gradient(run, batch["input"], x, delta, clean)
    expected = (delta + hook.ball.eta * g / g.abs().amax((1, 2), keepdim=True)).clamp(-hook.ball.eps, hook.ball.eps)
    assert torch.allclose(moved - x, expected * batch["input"].mask[:, :, None], atol=1e-6)
    assert ((moved - x) * g).sum() > 0 and not (moved - x)[1, 2].any(), "padding is not moved"


def _noise(hook, batch, x):
    from luthier.techniques.training._passes import noise, normal

    return noise(normal, hook.rng, "noise", 0, batch["ids"], x, batch["input"].mask)


# --- the ball -------------------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=68, clause=3, against="the bound itself")
@pytest.mark.parametrize("spec", ["smart", "smart:steps=3,radius=0.2", "smart:scheme=paper", "smart:direction=random",
                                  "smart:norm=2,steps=2"])
def test_embeddings_stay_within_the_ball(spec, pico, make_ctx):
    hook, run, batch = smoothing(pico, make_ctx, spec)
    x, moved, _ = worst(hook, run, batch)
    eps = 1e-5 if "paper" in spec else build("regularizer", spec).radius * hook.rms
    real = batch["input"].mask.bool()
    gone = (moved - x).double()
    rounding = 2e-7 * float(x.abs().max())
    if "norm=2" in spec:
        gone = torch.stack([row[mask].square().mean().sqrt() for row, mask in zip(gone, real, strict=True)])
    assert eps * 0.9 <= float(gone.abs().max()) <= eps + rounding
    assert not (moved - x)[~real].any()


def test_the_released_scheme_moves_each_token_by_one(pico, make_ctx):
    hook, run, batch = smoothing(pico, make_ctx, "smart:scheme=released,weight=1,mu=0")
    x, moved, _ = worst(hook, run, batch)
    largest = (moved - x).abs().amax(-1)[batch["input"].mask.bool()]
    assert ((largest > 0.8) & (largest <= 1.0 + 1e-5)).all(), "its guard of 1e-6 shortens a move of about 3e-5"


@pytest.mark.oracle(seed=68, clause=4, against="a smooth minimum: a quarter at half the radius")
@pytest.mark.oracle(seed=68, clause=5, against="random directions")
def test_the_divergence_grows_with_the_square_and_most_along_the_gradient(pico, make_ctx):
    found = {}
    for name, spec in {"half": "smart:radius=0.01", "whole": "smart:radius=0.02",
                       "random": "smart:radius=0.02,direction=random"}.items():
        hook, run, batch = smoothing(pico, make_ctx, spec, rows=10)
        found[name] = float(worst(hook, run, batch)[2].mean())
    assert 3.4 < found["whole"] / found["half"] < 4.6, found
    assert found["whole"] > 1.5 * found["random"] > 0, found
    hook, run, batch = smoothing(pico, make_ctx, "smart:scheme=paper", rows=10)
    assert float(worst(hook, run, batch)[2].mean()) < 0.05 * found["whole"], "the paper's radius is nil: rounding"


# --- the model before -----------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=68, clause=6, against="closed form: the running mean")
def test_the_model_before_follows_as_its_running_mean():
    _, model = linear_run()
    hook = linear_hook("smart:beta=0.9,beta_late=0.99,outer=2", model)
    weight, name = model.heads["task"].weight, "task:weight"
    wanted = weight.detach().clone()
    for step in range(24):
        hook.clock.step = step
        with torch.no_grad():
            weight += 1.0
        hook.on_step()
        if (step + 1) % 2 == 0:
            beta = 0.9 if step + 1 <= 10 else 0.99
            wanted = beta * wanted + (1 - beta) * weight.detach()
    assert torch.allclose(hook.before[name], wanted, atol=1e-4)
    again = linear_hook("smart:beta=0.9", model)
    again.load_state_dict(hook.state_dict())
    assert torch.equal(again.before[name], hook.before[name])


def test_both_parts_are_the_same_however_a_batch_is_cut(pico, make_ctx):
    found = []
    for size in (1, 6):
        objective, model = build("objective", "supervised"), build("method", "full").prepare(load_base(pico), None)
        features = encode(objective, model, examples(6))
        loop = make_loop(model, objective, features, make_ctx(f"{size}/loop"), batch_rows=6, micro_rows=size)
        hook = build("regularizer", "smart:weight=1,mu=1,radius=0.2").start(model, loop.ctx)
        for tensor in hook.before.values():
            tensor.mul_(1.05)
        loop.hooks = [hook]
        values = loop.closure(loop.batch(loop.tasks[0], 0))
        found.append((values, [t for t in loop.masters.taken() if t is not None]))
    (one, few), (other, many) = found
    assert one["smooth"] > 1e-4 and one["proximal"] > 1e-5
    assert one == pytest.approx(other, rel=1e-3)
    assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-2) for a, b in zip(few, many, strict=True))


# --- bad input ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("spec, said", [
    ("smart:radius=0", "radius = 0: Input should be greater than 0"),
    ("smart:norm=1", "norm = 1: Input should be 'inf' or 2"),
    ("smart:beta=1", "beta = 1: Input should be less than 1"),
])
def test_a_setting_that_is_none_is_refused(spec, said):
    with pytest.raises(UserError, match=said):
        build("regularizer", spec)


def test_a_model_that_takes_no_embeddings_is_refused_by_class(pico, make_ctx, monkeypatch):
    from transformers import LlamaModel

    forward = LlamaModel.forward

    def deaf(self, input_ids=None, inputs_embeds=None, **given):
        if inputs_embeds is not None:
            raise TypeError("unexpected keyword 'inputs_embeds'")
        return forward(self, input_ids=input_ids, **given)

    monkeypatch.setattr(LlamaModel, "forward", deaf)
    with pytest.raises(UserError, match=r"smart moves embeddings, and LlamaForCausalLM \(pico\) does not take them"):
        smoothing(pico, make_ctx, "smart")


def test_an_objective_with_two_sequences_is_refused(pico, make_ctx):
    model = build("method", "full").prepare(load_base(pico), None)
    objective = build("objective", "dpo")
    loop = make_loop(model, objective, encode(objective, model, examples(4)), make_ctx("loop"))
    hook = build("regularizer", "smart").start(model, loop.ctx)
    with pytest.raises(UserError, match="one sequence a row .*this one has chosen, rejected"):
        hook.units(make_batch(encode(objective, model, examples(2)), model))


def test_a_gradient_that_is_no_number_moves_nothing_and_is_said_once(pico, make_ctx, monkeypatch):
    hook, run, batch = smoothing(pico, make_ctx, "smart")
    told = []
    hook.ctx.log = told.append

    def broken(run, inputs, x, delta, clean):
        return torch.ones_like(delta).index_fill(0, torch.tensor([1]), float("nan"))

    monkeypatch.setattr(hook, "gradient", broken)
    x, moved, far = worst(hook, run, batch)
    assert torch.equal(moved[1], x[1]) and torch.isfinite(far).all() and (moved[0] != x[0]).any()
    worst(hook, run, batch)
    assert len(told) == 1 and "is not finite: such rows are not moved" in told[0] and "float32" in told[0]


def test_what_it_costs_is_said_and_a_radius_that_is_nil(pico, make_ctx):
    model, told = build("method", "full").prepare(load_base(pico), None), []
    ctx = make_ctx("x")
    ctx.clock, ctx.perturbed, ctx.log = SimpleNamespace(step=0, steps=9), lambda moves: None, told.append
    build("regularizer", "smart:scheme=paper,steps=2").start(model, ctx)
    assert "numerically nil" in told[0] and "5 forwards and 3 backwards more" in told[1]


def test_the_forward_of_a_frozen_lower_part_is_whole_for_it(pico, make_ctx):
    artifact, curve = fitted(make_ctx, pico, "frozen", "decoder", method="layer-freezing", regularizers=("smart",),
                             cache_frozen="on", length={"steps": 3})
    assert all(r["smoothness"] > 0 for r in curve)
    assert artifact.meta["fit"]["decisions"]["cache_frozen"]["use"], "and states of the lower layers are kept for the loss"
