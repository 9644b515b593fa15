"""composed: base + task + language as sums of whole tensors say it, and the task alone is the task's model."""

from __future__ import annotations

import pytest
import torch

from luthier.core.artifact import open_artifact
from luthier.core.component import build
from luthier.engine.models import add_tuned
from tests.contracts.workbench import short_fit, training_data, tuned_logits

SPARSE = "lt-sft:params=0.2"


@pytest.fixture
def made(pico_encoder, make_ctx):
    """Trains by a method on a base, and composes."""
    data = training_data(make_ctx("rows"))

    def fit(name, method, base=pico_encoder, **more):
        inputs = {"base": base, "examples": data}
        step = short_fit("encoder", method=method, length={"steps": 4}, dtype="float32", **more)
        return step.run(inputs, make_ctx(name, inputs))

    def compose(name, **inputs):
        step = build("step", {"use": "composed", "scale": inputs.pop("scale", 1.0)})
        given = {"base": pico_encoder, **inputs}
        ctx = make_ctx(name, given)
        artifact = step.run(given, ctx)
        assert [r.verdict for r in step.receipts(given, artifact, ctx)] == ["agrees", "agrees"]
        return open_artifact(artifact.folder)

    return fit, compose


def weights(engine, base, tuned=None):
    model = engine.fresh(base, torch.float32)
    return dict((add_tuned(model, tuned) if tuned else model).module.named_parameters())


def worst(one, two):
    return max(float((one[n] - two[n]).detach().abs().max()) for n in two)


@pytest.mark.parametrize("method", [SPARSE, "full"])
def test_the_task_alone_is_the_tuned_model_and_languages_are_added(method, made, engine, pico_encoder):
    fit, compose = made
    task, language = fit("task", method), fit("language", method, learning_rate=3e-2)
    alone = compose("alone", task=task)
    at, to = (tuned_logits(add_tuned(engine.fresh(pico_encoder, torch.float32), t)) for t in (task, alone))
    assert (at - to).abs().max() <= 1e-5
    base, one, two = weights(engine, pico_encoder), *(weights(engine, pico_encoder, t) for t in (task, language))
    both = weights(engine, pico_encoder, compose("both", task=task, language=language))
    wanted = {n: one[n] + two[n] - b for n, b in base.items()}
    assert worst(both, wanted) <= 1e-6 and worst(both, one) > 1e-3 and worst(both, two) > 1e-3


def test_a_task_is_counted_from_where_it_began(made, engine, pico_encoder, make_ctx):
    fit, compose = made
    source, language = fit("source", SPARSE), fit("language", SPARSE, learning_rate=3e-2)
    inputs = {"base": pico_encoder, "tuned": source}
    start = build("step", "whole-model").run(inputs, make_ctx("start", inputs))
    task = fit("task", SPARSE, start)
    found = weights(engine, pico_encoder, compose("found", task=task, start=start, language=language))
    base, began, ended, two = (weights(engine, b, t) for b, t in (
        (pico_encoder, None), (start, None), (start, task), (pico_encoder, language)))
    assert worst(found, {n: b + (ended[n] - began[n]) + (two[n] - b) for n, b in base.items()}) <= 1e-6
    own = weights(engine, pico_encoder, compose("own", task=task, start=start, language=source))
    assert worst(own, ended) <= 1e-6, "with its own language it is the model it was trained in"


def test_halves(made, engine, pico_encoder):
    fit, compose = made
    task = fit("task", "full")
    base, one = weights(engine, pico_encoder), weights(engine, pico_encoder, task)
    half = weights(engine, pico_encoder, compose("half", task=task, scale=0.5))
    assert worst(half, {n: (b + one[n]) / 2 for n, b in base.items()}) <= 1e-6
