"""Soft prompts: what is trained, where it begins, and that the model beneath stays bit for bit."""

from __future__ import annotations

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.engine.models import add_tuned, load_base
from tests.contracts import dummies
from tests.contracts.workbench import short_fit, training_data, tuned_logits


def prepared(base, ctx, spec):
    return build("method", spec).prepare(load_base(base), ctx)


@pytest.mark.oracle(seed=163, clause=4, against="the base itself, bit for bit")
def test_the_base_stays_bit_for_bit_and_the_prompt_is_what_is_kept(make_ctx, pico):
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    fit = short_fit("decoder", method="prompt-tuning:tokens=4", regularizers=("dummy-spy",), length={"steps": 4})
    artifact = fit.run(inputs, make_ctx("fit", inputs))
    seen = dict(dummies.SPIED)
    assert len(seen["moved"]) == 1 and "prompt" in next(iter(seen["moved"]))
    base, model = load_base(pico), add_tuned(load_base(pico), artifact)
    own = dict(base.module.named_parameters())
    inner = dict(model.module.get_base_model().named_parameters())
    assert own.keys() == inner.keys() and all(torch.equal(own[n], inner[n]) for n in own)
    assert (tuned_logits(model) - seen["logits"]).abs().max() <= 1e-5


@pytest.mark.oracle(seed=163, clause=4, against="embedding the same tokens as text")
def test_a_prompt_that_begins_as_a_text_answers_as_after_that_text(make_ctx, pico):
    model = prepared(pico, make_ctx("m"), "prompt-tuning:tokens=5,text=the class of the module is")
    trained = [p for p in model.module.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 5 * model.width
    ids = model.tokenizer("the class of the module is", add_special_tokens=False)["input_ids"]
    first = [ids[i % len(ids)] for i in range(5)]
    row = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        said = model.module(input_ids=row).logits[0, -4:]
        wanted = load_base(pico).module(input_ids=torch.tensor([first + row[0].tolist()])).logits[0, -4:]
    assert torch.allclose(said, wanted, atol=1e-5)


def test_drawn_starts_and_encoder_decoders(make_ctx, pico, pico_encoder_decoder):
    ctx = make_ctx("m")
    one, two = (prepared(pico, ctx, "prompt-tuning").module.prompt_encoder["default"].embedding.weight for _ in range(2))
    assert torch.equal(one, two) and one.shape[0] == 10
    table = load_base(pico).module.get_input_embeddings().weight
    assert all(bool((table == row).all(1).any()) for row in one)
    two_sided = prepared(pico_encoder_decoder, ctx, "prompt-tuning").module
    assert two_sided.prompt_encoder["default"].embedding.weight.isfinite().all()


def test_an_encoder_and_an_empty_text_are_refused(make_ctx, pico, pico_encoder):
    with pytest.raises(UserError, match="is an encoder and continues no prompt"):
        prepared(pico_encoder, make_ctx("m"), "prompt-tuning")
    with pytest.raises(UserError, match="has no tokens"):
        build("method", {"use": "prompt-tuning", "text": " "}).prepare(load_base(pico), make_ctx("m"))
