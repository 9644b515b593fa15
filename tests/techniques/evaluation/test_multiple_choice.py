"""multiple-choice: sums of log-probabilities by hand, by each of the four ways of comparing options."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.core.kinds import Prediction
from luthier.engine.models import load_base
from luthier.engine.rendering import renderer, with_answer, with_passages

OPTIONS = ["ebony", "dark red oak", "a peg", "in the year 1704"]


def asking(name, label=0, options=OPTIONS, text="What is the peg turned from?"):
    return question(name, text, task="multiple-choice", label=label, meta={"options": options})


ROWS = [asking("q0"), asking("q1", 3, text="When was the guild of Cremona founded?"),
        with_passages(asking("q2", 1, text="Which wood?"), ["The scroll is of dark red oak."])]


def brute(model, row, option, stop=False):
    """Log-probabilities of an option's tokens, from all scores of the whole model."""
    render = renderer(model)
    prompt, answer = render.prompt(row), render.encode(f" {option}") + ([render.stop_id] if stop else [])
    with torch.no_grad():
        scores = model.module(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return [float(scores[len(prompt) + i - 1, token]) for i, token in enumerate(answer)]


@pytest.fixture
def asked(pico, make_ctx):
    model = load_base(pico)
    with torch.no_grad():
        for i, p in enumerate(model.module.parameters()):
            p.add_(0.1 * torch.sin(torch.arange(p.numel()).view(p.shape) + i))
    return model, make_ctx("metric", roles={"policy": model})


def scored(metric, rows, ctx):
    return build("metric", metric).score(rows, [Prediction(e.id) for e in rows], ctx)


@pytest.mark.oracle(seed=167, clause=3, against="hand log-probability sums")
@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("by", ["sum", "token", "character", "pmi"])
def test_scores_are_sums_of_the_models_own_log_probabilities(asked, by, stop):
    model, ctx = asked
    bare = question("none", "")
    bare = replace(bare, turns=(replace(bare.turns[0], parts=tuple(replace(p, value="") for p in bare.turns[0].parts)),))
    found = scored(f"multiple-choice:by={by},stop={str(stop).lower()}", ROWS, ctx)
    for row, record in zip(ROWS, found, strict=True):
        told = [brute(model, row, o, stop) for o in OPTIONS]
        expected = {"sum": [sum(t) for t in told], "token": [sum(t) / len(t) for t in told],
                    "character": [sum(t) / len(o) for t, o in zip(told, OPTIONS, strict=True)],
                    "pmi": [sum(t) - sum(brute(model, bare, o, stop)) for t, o in zip(told, OPTIONS, strict=True)]}[by]
        assert record["scores"] == pytest.approx(expected, abs=2e-3)
        best = max(range(4), key=expected.__getitem__)
        assert record["chosen"] == best and record["value"] == float(best == int(row.label))
    ways = [scored(f"multiple-choice:by={w}", ROWS, ctx)[0]["scores"] for w in ("sum", "token")]
    assert ways[0] != pytest.approx(ways[1], abs=1e-2)


class Told:
    """An engine whose model gives an option as many nats as `nats` says."""

    def __init__(self, nats):
        self.nats = nats

    def score(self, model, sides):
        return [(self.nats[model.tokenizer.decode(answer).strip()], len(answer)) for _, answer in sides]


@pytest.mark.parametrize(("nats", "label", "value"), [
    ([-1, -2, -3, -4], 0, 1.0), ([-1, -2, -3, -4], 1, 0.0), ([-2, -1, -1, -4], 2, 1 / 2), ([-2, -1, -1, -4], 0, 0.0),
    ([-3, -3, -3, -3], 3, 1 / 4), ([-1, -1 - 1e-9, -2, -2], 1, 1 / 2)])
def test_equals_share_the_point(asked, nats, label, value):
    ctx = replace(asked[1], engine=Told(dict(zip(OPTIONS, nats, strict=True))))
    (record,) = scored("multiple-choice", [asking("q", label)], ctx)
    assert record["value"] == value
    assert scored("multiple-choice", [asking("q", str(label))], ctx)[0]["value"] == value, "a label may be written as text"


@pytest.mark.parametrize(("rows", "why"), [
    ([asking("a"), asking("b", options=OPTIONS[:3])], "Row b has 3 options and row a has 4"),
    ([asking("a", options=["one"])], "Row a: a multiple-choice question has two options or more"),
    ([asking("a", options=["one", " "])], "each a text"), ([asking("a", options=["one", "one"])], "two of its options"),
    ([asking("a", 4)], r"its label is 4; expected the number of the right option, 0 to 3"),
    ([asking("a", None)], "its label is None"), ([asking("a", -1)], "its label is -1"),
])
def test_bad_options_are_refused_before_anything_is_scored(asked, rows, why):
    with pytest.raises(UserError, match=why):
        scored("multiple-choice", rows, replace(asked[1], engine=None))


def test_a_question_that_holds_its_answer_is_flagged(asked):
    ctx, log = asked[1], []
    rows = [asking("q0", text="Is the peg of EBONY?"), asking("q1", 1, text="Is it ebony?"), asking("q2")]
    found = scored("multiple-choice", rows, replace(ctx, log=log.append))
    assert [r["given_away"] for r in found] == [True, False, False]
    assert log == ["1 questions hold the text of their right option: q0"]


def test_other_rows_have_no_value(asked):
    rows = [question("plain", "What?", "This."), asking("q")]
    found = scored("multiple-choice", rows, asked[1])
    assert found[0] == {"id": "plain", "value": None} and found[1]["value"] is not None
    assert scored("multiple-choice", rows[:1], replace(asked[1], engine=None)) == found[:1]


def test_an_option_is_read_as_an_answer_is_trained(asked):
    """The tokens that are scored are those that training would learn, but for the end."""
    render = renderer(asked[0])
    tokens = render.tokens(with_answer(ROWS[0], OPTIONS[0]))
    learned = [i for i, t in zip(tokens.ids, tokens.targets, strict=True) if t]
    assert learned == [*render.encode(f" {OPTIONS[0]}"), render.stop_id]
