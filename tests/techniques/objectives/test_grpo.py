"""GRPO: advantages and the loss by hand, what must not move, a bandit, and the rows of a round."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.engine.forward import Forward
from luthier.engine.models import add_tuned, load_base
from luthier.techniques.objectives.grpo import compared
from tests.contracts.workbench import make_batch
from tests.techniques.objectives import test_ppo
from tests.techniques.objectives.test_ppo import stops  # noqa: F401

SAMPLED = "sample:temperature=1,top_p=1,max_new_tokens=3"


def fit(make_ctx, base, name, steps=2, **changed):
    """A short GRPO training: (artifact, curve)."""
    objective = {"use": "grpo", "group": 2, "passes": 1, "decoder": SAMPLED, **changed.pop("objective", {})}
    return test_ppo.fit(make_ctx, base, name, steps, objective=objective, **changed)


@pytest.mark.oracle(clause="advantages", against="hand case, and TRL's formula (unbiased std + 1e-4)")
def test_advantages_of_a_group_by_hand():
    assert compared([1.0, 0.0, 0.0, 1.0]) == pytest.approx([0.5 / (math.sqrt(1 / 3) + 1e-4) * s for s in (1, -1, -1, 1)])
    assert compared([3.0, 1.0, 2.0], scaled=False) == [1.0, -1.0, 0.0]
    assert compared([2.0, 2.0]) == [0, 0], "a group that does not differ teaches nothing"
    scores = torch.randn(6, generator=torch.manual_seed(0), dtype=torch.float64)
    assert compared(scores.tolist()) == pytest.approx(((scores - scores.mean()) / (scores.std() + 1e-4)).tolist())


@pytest.mark.oracle(clause="loss", against="the formula written out in float64, and its gradient")
@pytest.mark.parametrize("average", ["answer", "token"])
def test_the_loss_is_the_published_one(pico, average):
    """Two answers of one and three tokens, with other probabilities when they were written, and another reference."""
    from luthier.core.kinds import Tokens

    objective = build("objective", {"use": "grpo", "average": average, "beta": 0.3, "clip": 0.1})
    model = load_base(pico)
    rows = [{"input": Tokens([5, 9, 7], [False, False, True]), "logs": (-3.0,), "reference": (-4.0,), "advantages": (0.8,)},
            {"input": Tokens([5, 8, 6, 4], [False, True, True, True]), "logs": (-5.1, -4.0, -6.0),
             "reference": (-5.0, -5.5, -4.5), "advantages": (-1.2,) * 3}]
    run = Forward({"policy": model})
    batch = make_batch(rows, model)
    said = objective.loss(run, batch)
    counts = objective.count(batch)
    total = said["policy"] / counts["policy"] + objective.coefficients()["kl"] * said["kl"] / counts["kl"]
    terms = []
    for row in rows:
        tokens = row["input"]
        with torch.no_grad():
            every = model.module(input_ids=torch.tensor([tokens.ids])).logits[0].double().log_softmax(-1)
        places = [t for t, learned in enumerate(tokens.targets) if learned]
        own = []
        for n, t in enumerate(places):
            log = float(every[t - 1, tokens.ids[t]])
            ratio, away, a = math.exp(log - row["logs"][n]), row["reference"][n] - log, row["advantages"][n]
            own.append(-min(a * ratio, a * min(max(ratio, 0.9), 1.1)) + 0.3 * (math.exp(away) - away - 1))
        terms.append(own)
    wanted = sum(sum(own) / len(own) for own in terms) / 2 if average == "answer" else sum(map(sum, terms)) / 4
    assert float(total) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.oracle(clause="no reward", against="bit for bit")
@pytest.mark.parametrize("architecture", ["decoder", "encoder-decoder"])
def test_where_all_answers_are_worth_the_same_the_policy_stays_as_it_is(make_ctx, bases, architecture, stops):  # noqa: F811
    artifact, curve = fit(make_ctx, bases[architecture], "same", steps=4, objective={"reward": "dummy-letters:worth=2"})
    # The reference is the base in the same numbers, so k3 and its gradient are 0 where nothing has moved.
    assert all(row["flat"] == 1 and row["parts"]["policy"] == 0 and abs(row["k3"]) < 1e-9 for row in curve if "flat" in row)
    tuned = add_tuned(load_base(bases[architecture]), artifact).module.state_dict()
    assert all(torch.allclose(tuned[n], t, atol=1e-6) for n, t in load_base(bases[architecture]).module.state_dict().items())


@pytest.mark.oracle(clause="bandit", against="the arm that is rewarded")
def test_a_bandit_comes_to_pull_the_rewarded_arm(make_ctx, pico, stops):  # noqa: F811
    _, curve = fit(make_ctx, pico, "bandit", steps=60, batch_rows=16, learning_rate=3e-3, objective={
        "reward": "dummy-letters:begins=aeiou", "rollouts": 4, "group": 4, "beta": 0.0,
        "decoder": "sample:temperature=1,top_p=1,max_new_tokens=1"})
    rewards = [row["reward"] for row in curve if "reward" in row]
    assert sum(rewards[:3]) / 3 < 0.4 and sum(rewards[-3:]) / 3 > 0.9, rewards


def test_a_round_has_a_group_of_each_prompt_and_survives_a_kill(make_ctx, pico, stops, monkeypatch):  # noqa: F811
    from tests.contracts import dummies

    seen = test_ppo.watched(monkeypatch)
    changed = {"steps": 6, "objective": {"reward": "dummy-letters:wanted=aeiou", "rollouts": 2, "group": 3, "passes": 2}}
    whole, _ = fit(make_ctx, pico, "whole", **changed)
    assert sorted(seen[0] + seen[1] + seen[2]) == sorted(seen[3] + seen[4] + seen[5]), "two passes of six answers"
    prompts = {name.rsplit("/", 1)[0] for name in seen[0] + seen[1] + seen[2]}
    assert len(prompts) == 2 and len(set(seen[0] + seen[1] + seen[2])) == 6
    stop = {"regularizers": ("dummy-stop:at=4",), "checkpoint_seconds": 0}
    with pytest.raises(dummies.Killed):
        fit(make_ctx, pico, "killed", **changed, **stop)
    again, _ = fit(make_ctx, pico, "killed", **changed, **stop)
    one, two = (load_file(next(a.folder.glob("model*.safetensors"))) for a in (whole, again))
    assert all(torch.equal(t, two[n]) for n, t in one.items())


def test_what_cannot_be_learned_from_is_refused(make_ctx, pico, stops):  # noqa: F811
    with pytest.raises(UserError, match="grpo: the reward dummy-letters has no value for row q"):
        fit(make_ctx, pico, "none", objective={"reward": "dummy-letters"})
    with pytest.raises(UserError, match="group"):
        build("objective", "grpo:group=1")
