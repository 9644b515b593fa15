"""Classification against logistic regression by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.kinds import DroppedRow
from luthier.core.rng import Rng
from luthier.engine.forward import Forward
from luthier.engine.models import load_base
from luthier.engine.rendering import Render
from tests.contracts.workbench import encode, examples, make_batch, short_fit, training_data


def test_the_loss_is_the_cross_entropy_of_head_and_pooled_text(pico_encoder):
    model, objective = load_base(pico_encoder), build("objective", "classify")
    features = encode(objective, model, examples(5))
    torch.manual_seed(0)
    model.heads["t"] = build("head", "linear:dropout=0").build(model, ["thing", "word"])
    batch = make_batch(features, model)
    run = Forward({"policy": model})
    run.task = "t"
    with torch.no_grad():
        states = model.module(input_ids=batch["input"].ids, attention_mask=batch["input"].mask).last_hidden_state
        mask = batch["input"].mask[:, :, None]
        pooled = (states * mask).sum(1) / mask.sum(1)
        layer = model.heads["t"][-1]
        wanted = cross_entropy(pooled @ layer.weight.T + layer.bias, batch["label"], reduction="sum")
        assert float(objective.loss(run, batch)["nll"]) == pytest.approx(float(wanted), abs=1e-5)
    assert objective.count(batch) == {"nll": 5} and batch["label"].tolist() == [0, 1, 0, 1, 0]


def test_a_row_without_a_label_is_dropped_by_name(pico_encoder):
    model = load_base(pico_encoder)
    render = Render(model.tokenizer, "encoder", 64, labels=["a"])
    row = type(examples(1)[0])("unlabelled", examples(1)[0].turns)
    with pytest.raises(DroppedRow) as caught:
        build("objective", "classify").encode(row, render, Rng(0))
    assert (caught.value.dropped.id, caught.value.dropped.reason) == ("unlabelled", "no label")


def test_a_label_task_needs_a_head_and_two_labels(make_ctx, pico_encoder):
    from luthier.core.artifact import write_examples
    from tests.contracts.workbench import labelled

    inputs = {"base": pico_encoder, "examples": training_data(make_ctx("rows"))}
    headless = short_fit("encoder", tasks=({"data": "examples.train", "objective": "classify"},), method="full")
    with pytest.raises(UserError, match="'classify' needs a head: tasks: .*head: linear"):
        headless.run(inputs, make_ctx("fit", inputs))
    inputs["examples"] = write_examples(make_ctx("one").folder, {"train": labelled(examples(3), "same")})
    with pytest.raises(UserError, match="has 1 label.* a classifier needs at least 2"):
        short_fit("encoder", method="full").run(inputs, make_ctx("again", inputs))


def test_an_encoder_can_not_write_answers(make_ctx, pico_encoder):
    inputs = {"base": pico_encoder, "examples": training_data(make_ctx("rows"))}
    with pytest.raises(UserError, match="'supervised' needs decoder or encoder-decoder; pico-encoder is an encoder"):
        short_fit("decoder").run(inputs, make_ctx("fit", inputs))
