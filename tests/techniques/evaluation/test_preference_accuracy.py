"""preference-accuracy against log-probabilities computed from the model's own scores."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import with_rejected
from luthier.core.kinds import Prediction
from luthier.engine.models import load_base
from luthier.engine.rendering import renderer
from tests.contracts.workbench import examples


def brute(model, example) -> tuple[float, int]:
    """Log-probability and number of the answer's tokens, from all scores of the whole model."""
    tokens = renderer(model).tokens(example)
    ids = torch.tensor([tokens.ids])
    with torch.no_grad():
        scores = model.module(input_ids=ids).logits[0].double().log_softmax(-1)
    at = [i for i, learned in enumerate(tokens.targets) if learned]
    return sum(float(scores[i - 1, tokens.ids[i]]) for i in at), len(at)


@pytest.fixture
def asked(pico, make_ctx):
    policy, reference = load_base(pico), load_base(pico)
    with torch.no_grad():
        for i, p in enumerate(policy.module.parameters()):
            p.add_(0.1 * torch.sin(torch.arange(p.numel()).view(p.shape) + i))
    return policy, reference, make_ctx("metric", roles={"policy": policy, "reference": reference})


def scored(metric, rows, ctx):
    return build("metric", metric).score(rows, [Prediction(e.id) for e in rows], ctx)


@pytest.mark.oracle(clause="preference by likelihood and by reward", against="brute force")
def test_margins_are_those_of_the_models_own_scores(asked):
    policy, reference, ctx = asked
    rows, seen = examples(6), []
    likelihood, reward = (scored(f"preference-accuracy:by={by}", rows, ctx) for by in ("likelihood", "reward"))
    for row, one, two in zip(rows, likelihood, reward, strict=True):
        chosen, rejected = brute(policy, row), brute(policy, with_rejected(row))
        before, after = brute(reference, row)[0], brute(reference, with_rejected(row))[0]
        per_token = chosen[0] / chosen[1] - rejected[0] / rejected[1]
        gain = (chosen[0] - before) - (rejected[0] - after)
        assert one["margin"] == pytest.approx(per_token, abs=1e-4) and one["value"] == (per_token > 0)
        assert two["margin"] == pytest.approx(gain, abs=1e-3) and two["value"] == (gain > 0)
        seen.append(chosen[1] != rejected[1] and abs(per_token - (chosen[0] - rejected[0])) > 1e-2)
    assert any(seen), "a sum instead of a mean would be seen"


def test_exchanged_answers_turn_the_value(asked):
    rows = examples(4)
    turned = [replace(with_rejected(e), rejected=e.turns[-1]) for e in rows]
    values = [[r["value"] for r in scored("preference-accuracy", given, asked[2])] for given in (rows, turned)]
    assert [a + b for a, b in zip(*values, strict=True)] == [1.0] * 4


def test_the_reference_prefers_nothing_by_reward(asked, make_ctx):
    ctx = make_ctx("itself", roles={"policy": asked[1], "reference": asked[1]})
    records = scored("preference-accuracy:by=reward", examples(4), ctx)
    assert {r["value"] for r in records} == {0.5}


def test_a_reward_without_a_reference_is_refused(asked, make_ctx):
    with pytest.raises(UserError, match="by=reward compares with a reference, and none is at hand"):
        scored("preference-accuracy:by=reward", examples(2), make_ctx("alone", roles={"policy": asked[0]}))


def test_a_row_without_a_pair_has_no_value(asked):
    rows = [replace(e, rejected=None) if i else e for i, e in enumerate(examples(3))]
    assert [r["value"] is None for r in scored("preference-accuracy", rows, asked[2])] == [False, True, True]


def test_a_pair_that_is_too_long_to_read_says_so(asked):
    lengths = sorted(len(renderer(asked[0]).tokens(e).ids) for e in examples(6))
    asked[0].limit = lengths[3]
    records = scored("preference-accuracy", examples(6), asked[2])
    out = [r for r in records if r["value"] is None]
    assert 0 < len(out) < 6 and all("at most max_tokens_per_example" in r["left_out"] for r in out)
