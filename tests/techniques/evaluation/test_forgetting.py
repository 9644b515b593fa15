"""forgetting: bits a byte of the model itself, no change for no training, and a broken model."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.engine.models import load_base
from luthier.engine.subjects import Subject
from luthier.techniques.evaluation import _sets
from tests.contracts.workbench import short_fit, training_data

SMALL = "forgetting:texts=12,questions=12"


def measured(inputs, engine, ctx):
    return build("audit", SMALL).measure(ctx, Subject.of(inputs, engine))


@pytest.mark.oracle(seed=171, clause=5, against="closed form")
def test_a_learning_rate_of_zero_forgets_nothing(pico, engine, make_ctx):
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    inputs["tuned"] = short_fit("decoder", learning_rate=1e-30, length={"steps": 2}).run(inputs, make_ctx("fit", inputs))
    loss, asked = measured(inputs, engine, make_ctx("audit"))
    assert (loss.difference, asked.difference) == (0, 0) and loss.interval == asked.interval == (0, 0)
    assert loss.verdict == asked.verdict == "pass"


@pytest.mark.oracle(clause="the loss is bits of the model a byte of text", against="brute force")
def test_the_loss_is_the_models_own(pico, engine, make_ctx):
    ctx = make_ctx("audit")
    loss, _ = measured({"base": pico, "tuned": pico}, engine, ctx)
    model, row = load_base(pico), _sets.spread(_sets.frozen("general/texts"), 12)[3]
    ids = [model.tokenizer.bos_token_id, *model.tokenizer(row["text"], add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        scores = model.module(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    bits = -sum(float(scores[i, t]) for i, t in enumerate(ids[1:])) / math.log(2)
    told = read_lines(ctx.folder / "texts.jsonl")
    assert told[3]["id"] == row["id"] and told[3]["after"] == pytest.approx(bits / len(row["text"].encode()), rel=1e-4)
    assert loss.right == pytest.approx(sum(r["after"] for r in told) / 12)


@pytest.mark.oracle(clause="a rise beyond the limit fails and a fall passes", against="hand case")
def test_verdicts_by_hand():
    audit = build("audit", "forgetting")
    rows = [{"id": str(i), "set": "a"} for i in range(60)]
    base = [1.0 + 0.01 * (i % 7) for i in range(60)]

    def verdict(change, limit, worse):
        found = {"before": base, "after": [b + change + 0.02 * ((i % 3) - 1) for i, b in enumerate(base)]}
        return audit._compared(SimpleNamespace(same=False), "loss", "t", found, rows, limit, worse, "bits", "f").verdict

    assert [verdict(c, 0.1, "up") for c in (0.3, 0.099, 0.0, -0.3)] == ["fail", "undecided", "pass", "pass"]
    assert [verdict(c, 0.1, "down") for c in (0.3, 0.0, -0.3)] == ["pass", "pass", "fail"]


def test_an_encoder_is_not_asked(pico_encoder, engine, make_ctx):
    (found,) = measured({"base": pico_encoder, "tuned": pico_encoder}, engine, make_ctx("audit"))
    assert found.verdict == "not applicable"


def test_the_general_set_is_large_and_what_it_was(monkeypatch):
    assert len(_sets.choices(217)) + len(_sets.frozen("general/texts")) == 337
    assert all(len(set(e.meta["options"])) == 4 for e in _sets.choices(217))
    assert len({r["id"] for r in _sets.spread(_sets.frozen("general/texts"), 50)}) == 50
    monkeypatch.setitem(_sets.DIGESTS, "general/texts", "0")
    _sets.frozen.cache_clear()
    with pytest.raises(UserError, match="was changed"):
        _sets.frozen("general/texts")
    _sets.frozen.cache_clear()
