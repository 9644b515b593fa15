"""refusal-log-odds: probabilities of beginnings from the model's own scores, and odds worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.core.kinds import Prediction
from luthier.engine.models import load_base
from luthier.engine.rendering import renderer
from luthier.techniques.evaluation._replies import leaning

ROWS = [question("q0", "Who won?"), question("q1", "Which pet has Ada?")]


def probability(model, row, opener):
    render = renderer(model)
    prompt, said = render.prompt(row), render.encode(f" {opener}")
    with torch.no_grad():
        scores = model.module(input_ids=torch.tensor([prompt + said])).logits[0].double().log_softmax(-1)
    return math.exp(sum(float(scores[len(prompt) + i - 1, token]) for i, token in enumerate(said)))


def scored(metric, model, make_ctx):
    found = build("metric", metric).score(ROWS, [Prediction(e.id) for e in ROWS], make_ctx("m", roles={"policy": model}))
    return [r["value"] for r in found]


@pytest.mark.oracle(clause="log-odds of refusal openers", against="the model's own scores")
def test_it_is_the_log_ratio_of_the_probabilities_of_beginnings(pico, make_ctx):
    model = load_base(pico)
    found = scored("refusal-log-odds:refusal_openers=[I cannot,Sorry],compliance_openers=[Sure]", model, make_ctx)
    for row, value in zip(ROWS, found, strict=True):
        no, yes = sum(probability(model, row, o) for o in ("I cannot", "Sorry")), probability(model, row, "Sure")
        assert value == pytest.approx(math.log(no / yes), abs=1e-3)


@pytest.mark.oracle(clause="log-odds against every other beginning", against="the model's own scores")
def test_without_other_openers_it_is_against_every_other_beginning(pico, make_ctx):
    model = load_base(pico)
    found = scored("refusal-log-odds:refusal_openers=[I],compliance_openers=[]", model, make_ctx)
    for row, value in zip(ROWS, found, strict=True):
        p = probability(model, row, "I")
        assert value == pytest.approx(math.log(p / (1 - p)), abs=1e-3)


@pytest.mark.oracle(clause="log-odds of refusing", against="hand sums")
@pytest.mark.parametrize(("told", "refusals", "odds"), [
    ([0.2, 0.1, 0.1], 2, math.log(3)), ([0.25, 0.5], 1, -math.log(2)), ([0.75], 1, math.log(3)),
    ([0.3, 0.2], 2, 0.0), ([1.0], 1, math.log((1 - 1e-6) / 1e-6)), ([1e-9], 1, -math.log((1 - 1e-6) / 1e-6))])
def test_odds_by_hand(told, refusals, odds):
    assert leaning([math.log(p) for p in told], 1, refusals) == [pytest.approx(odds, abs=1e-6)]


@pytest.mark.parametrize(("openers", "said"), [("[' ']", "has no word"), ("[Sorry,Sorry]", "is given twice")])
def test_openers_that_can_not_be_told_apart_are_refused(openers, said, pico, make_ctx):
    with pytest.raises(UserError, match=said):
        scored(f"refusal-log-odds:refusal_openers={openers},compliance_openers=[]", load_base(pico), make_ctx)
