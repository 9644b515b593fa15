"""mlm: which places are hidden, and the loss of a forward by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.kinds import DroppedRow
from luthier.core.rng import Rng
from luthier.engine.forward import Forward
from luthier.engine.models import load_base
from luthier.engine.rendering import renderer
from tests.contracts.workbench import make_batch

TEXT = "module class object list dict name scope block import yield " * 6


def row(text=TEXT, name="r"):
    return Example(name, (Turn("assistant", (Part(text, name="text"),), target=True),), task="text")


@pytest.mark.oracle(clause="the loss is that of the hidden tokens by the embedding table", against="a forward by hand")
def test_the_loss_is_that_of_the_hidden_tokens(pico_encoder):
    model, objective = load_base(pico_encoder), build("objective", "mlm")
    features = [objective.encode(row(TEXT[:n], f"r{n}"), renderer(model, 256), Rng(n)) for n in (40, 200)]
    batch = make_batch(features, model)
    with torch.no_grad():
        found = objective.loss(Forward({"policy": model}), batch)["masked"]
        wanted = 0.0
        for feature in features:
            tokens = feature["input"]
            states = model.module(input_ids=torch.tensor([tokens.ids])).last_hidden_state[0]
            logs = (states @ model.module.get_input_embeddings().weight.T).log_softmax(-1)
            places = [n for n, t in enumerate(tokens.targets) if t]
            wanted -= sum(float(logs[p, was]) for p, was in zip(places, feature["was"], strict=True))
    assert float(found) == pytest.approx(wanted, rel=1e-4) and objective.count(batch)["masked"] == sum(
        len(f["was"]) for f in features)


def test_places_are_hidden_in_bert_s_shares(pico_encoder):
    model, objective = load_base(pico_encoder), build("objective", "mlm:share=0.2")
    render, kinds, total = renderer(model, 512), Counter(), 0
    original = render.text(Example("x", (Turn("user", (Part(TEXT),)),))).ids
    for seed in range(150):
        feature = objective.encode(row(), render, Rng(seed))
        tokens = feature["input"]
        assert [original[n] for n, t in enumerate(tokens.targets) if t] == list(feature["was"])
        assert all(a == b for a, b, t in zip(tokens.ids, original, tokens.targets, strict=True) if not t)
        total += len(feature["was"])
        for n, t in enumerate(tokens.targets):
            if t:
                kinds["mask" if tokens.ids[n] == model.tokenizer.mask_token_id else
                      "same" if tokens.ids[n] == original[n] else "other"] += 1
    assert total / 150 == pytest.approx(0.2 * (len(original) - 2), abs=1)
    assert kinds["mask"] / total == pytest.approx(0.8, abs=0.03) and kinds["other"] / total == pytest.approx(0.1, abs=0.025)


def test_what_can_not_be_hidden_is_said(pico_encoder):
    model, objective = load_base(pico_encoder), build("objective", "mlm")
    with pytest.raises(DroppedRow) as caught:
        objective.encode(row(""), renderer(model, 64), Rng(0))
    assert caught.value.dropped.reason == "nothing to learn"
    model.tokenizer.mask_token = None
    with pytest.raises(UserError, match="no mask token"):
        objective.encode(row(), renderer(model, 256), Rng(0))
