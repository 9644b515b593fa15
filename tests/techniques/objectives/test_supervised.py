"""Supervised fine-tuning against the model's own loss and a hand-made mean."""

from __future__ import annotations

import pytest
import torch

from luthier.core.component import build
from luthier.core.kinds import Tokens
from luthier.engine.forward import Forward
from luthier.engine.models import load_base
from tests.contracts.workbench import encode, examples, make_batch, make_loop


@pytest.fixture(scope="module")
def model(pico):
    return load_base(pico)


def test_the_minimised_number_is_the_mean_over_learned_tokens(model, make_ctx):
    objective = build("objective", "supervised")
    features = encode(objective, model, examples(5))
    model.module.requires_grad_(True)
    loop = make_loop(model, objective, features, make_ctx("loop"))
    whole = make_batch(features, model)
    minimised = sum(loop.closure([whole]).values())
    model.module.zero_grad(set_to_none=True)
    model.module.requires_grad_(False)
    labels = whole["input"].ids.masked_fill(~whole["input"].targets, -100)
    with torch.no_grad():
        theirs = model.module(input_ids=whole["input"].ids, attention_mask=whole["input"].mask, labels=labels).loss
    assert minimised == pytest.approx(float(theirs), abs=1e-5)
    with torch.no_grad():
        run = Forward({"policy": model})
        means = [float(run("policy", make_batch([f], model)["input"]).nll().mean()) for f in features]
    assert abs(minimised - sum(means) / len(means)) > 1e-5, "a mean of means would be another number"


def test_only_the_answer_counts(model):
    objective = build("objective", "supervised")
    for feature in encode(objective, model, examples(3)):
        tokens = feature["input"]
        assert isinstance(tokens, Tokens)
        assert objective.count(make_batch([feature], model)) == {"nll": sum(tokens.targets)}
        assert 0 < sum(tokens.targets) < len(tokens.ids)
