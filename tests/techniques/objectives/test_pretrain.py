"""Continued pretraining against the model's own loss, and against one long row read by hand."""

from __future__ import annotations

import pytest
import torch

from luthier.core.component import build
from luthier.core.example import Example, Part, Turn
from luthier.core.kinds import DroppedRow
from luthier.core.rng import Rng
from luthier.engine.forward import Forward
from luthier.engine.models import load_base
from luthier.engine.rendering import Render, renderer
from tests.contracts.workbench import make_batch

WORDS = "module class object list dict name scope block import yield".split()


def text(words: int, name: str = "t") -> Example:
    return Example(name, (Turn("user", (Part(" ".join(WORDS[i * i % 10] for i in range(words)), name="text"),)),),
                   task="text")


@pytest.fixture(scope="module")
def model(pico):
    return load_base(pico)


def loss(model, features) -> float:
    objective = build("objective", "pretrain")
    with torch.no_grad():
        return float(objective.loss(Forward({"policy": model}), make_batch(features, model))["nll"])


def test_a_text_costs_what_the_model_says_of_all_its_tokens(model):
    objective = build("objective", "pretrain")
    feature = objective.encode(text(30), renderer(model, 256), Rng(0))
    ids = torch.tensor([feature["input"].ids])
    assert ids[0, 0] == model.tokenizer.bos_token_id and ids[0, -1] == model.tokenizer.eos_token_id
    with torch.no_grad():
        theirs = model.module(input_ids=ids, labels=ids).loss
    count = objective.count(make_batch([feature], model))["nll"]
    assert count == ids.shape[1] - 1
    assert loss(model, [feature]) == pytest.approx(float(theirs) * count, rel=1e-5)


def test_rows_of_a_long_text_learn_each_token_once_behind_what_their_row_shows(model):
    """By hand: each block read by itself, its tokens but the first summed."""
    objective = build("objective", "pretrain")
    render = Render(model.tokenizer, "decoder", 32, over_long="split")
    rows = objective.rows(text(60), render, Rng(0))
    document = render.document(text(60))
    assert len(rows) == -(-(len(document) - 1) // 31)
    total = 0.0
    for start in range(0, len(document) - 1, 31):
        ids = torch.tensor([document[start:start + 32]])
        with torch.no_grad():
            log = model.module(input_ids=ids).logits[0, :-1].log_softmax(-1)
        total -= float(log.gather(1, ids[0, 1:, None]).sum())
    assert loss(model, rows) == pytest.approx(total, rel=1e-5)
    assert abs(loss(model, rows[1:]) - total) > 1, "a skipped row is another number"


def test_a_long_text_is_dropped_with_the_way_out_unless_split_is_asked_for(model):
    objective = build("objective", "pretrain")
    with pytest.raises(DroppedRow) as caught:
        objective.rows(text(60), Render(model.tokenizer, "decoder", 32), Rng(0))
    assert caught.value.dropped.reason == "too long" and "over_long: split" in caught.value.dropped.detail
