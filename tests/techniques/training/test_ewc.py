"""EWC against gradients of single rows by autograd, and its penalty by hand."""

from __future__ import annotations

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.engine.loop import Task
from luthier.engine.models import load_base
from luthier.techniques.training.ewc import EARLIER, Held, fisher
from tests.contracts.workbench import encode, examples, make_batch, make_loop, short_fit, training_data


def looped(pico, make_ctx, earlier):
    model = build("method", "lora:rank=2").prepare(load_base(pico), None)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.module.parameters():
            if p.requires_grad:
                p.normal_(std=0.1)
    objective = build("objective", "supervised")
    features = encode(objective, model, examples(8))
    loop = make_loop(model, objective, features[:4], make_ctx("fit"))
    loop.further = {EARLIER: Task("earlier", objective, features[4:4 + earlier], [f"e{i}" for i in range(earlier)])}
    return loop, model, features


@pytest.mark.oracle(clause="Fisher information", against="autograd, row by row")
def test_information_is_the_mean_square_of_the_gradients_of_rows(pico, make_ctx):
    loop, model, features = looped(pico, make_ctx, 3)
    found = fisher(model, loop.ctx, 64)
    trained = [p for p in model.module.parameters() if p.requires_grad]
    wanted = [torch.zeros_like(p) for p in trained]
    for row in features[4:7]:
        tokens = row["input"]
        ids = torch.tensor([tokens.ids])
        scores = model.module(input_ids=ids).logits[0, :-1].log_softmax(-1)
        learned = [i for i, t in enumerate(tokens.targets) if t]
        loss = -sum(scores[i - 1, tokens.ids[i]] for i in learned) / len(learned)
        for total, gradient in zip(wanted, torch.autograd.grad(loss, trained), strict=True):
            total += gradient.square() / 3
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-9) for a, b in zip(found, wanted, strict=True))
    assert all(p.grad is None for p in trained)
    fewer = fisher(model, loop.ctx, 1)
    assert not torch.allclose(fewer[0], found[0])


@pytest.mark.oracle(clause="the penalty", against="closed form and its gradient lambda F (w - u)")
def test_the_penalty_is_zero_where_training_begins_and_quadratic_from_there(pico, make_ctx):
    loop, model, features = looped(pico, make_ctx, 2)
    trained = [p for p in model.module.parameters() if p.requires_grad]
    information = [torch.rand_like(p) for p in trained]
    hook = Held(3.0, model, information)
    assert float(hook.on_loss(loop.run, None, {})["ewc"]) == 0
    moves = [torch.randn_like(p) for p in trained]
    with torch.no_grad():
        for p, move in zip(trained, moves, strict=True):
            p += move
    part = hook.on_loss(loop.run, None, {})["ewc"]
    wanted = 1.5 * sum(float((f * m * m).sum()) for f, m in zip(information, moves, strict=True))
    assert float(part.detach()) == pytest.approx(wanted, rel=1e-4)
    for gradient, f, m in zip(torch.autograd.grad(part, trained), information, moves, strict=True):
        assert torch.allclose(gradient, 3 * f * m, rtol=1e-3, atol=1e-5)
    assert Held(0.0, model, information).on_loss(loop.run, make_batch(features, model), {}) == {}


def test_heads_and_missing_rows_are_refused(pico_encoder, pico, make_ctx):
    inputs = {"base": pico_encoder, "examples": training_data(make_ctx("examples"))}
    with pytest.raises(UserError, match="ewc holds weights that tasks share, and the head of examples.train belongs to one"):
        short_fit("encoder", method="full", regularizers=("ewc:data=examples.dev",)).run(inputs, make_ctx("fit", inputs))
    inputs["base"] = pico
    with pytest.raises(UserError, match="earlier"):
        short_fit("decoder", method="full", regularizers=("ewc",)).run(inputs, make_ctx("other", inputs))
