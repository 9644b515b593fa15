"""PPO: advantages and losses by hand, what must not move, a bandit, and rounds that survive a kill."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import Field
from safetensors.torch import load_file

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.core.files import read_lines
from luthier.core.kinds import Metric
from luthier.engine.models import add_tuned, load_base
from luthier.engine.rollouts import Rollouts
from luthier.engine.steps.fit import Fit
from luthier.engine.weights import load_heads
from luthier.techniques.objectives import _ppo
from luthier.techniques.objectives._on_policy import OnPolicy
from tests.contracts import dummies


class Letters(Metric, name="dummy-letters"):
    """What an answer is worth: a number, the share of its letters that are wanted, or a point for one that begins so."""

    worth: float | None = Field(None, description="the same for every answer")
    wanted: str = Field("", description="letters of which the share counts")
    begins: str = Field("", description="letters with which an answer earns a point")

    def score(self, examples: Any, predictions: Any, ctx: Any) -> list[dict[str, Any]]:
        if self.begins:
            return [{"id": p.id, "value": float(p.text != "" and p.text[0] in self.begins)} for p in predictions]
        return [{"id": p.id, "value": self.worth if not self.wanted else
                 sum(c in self.wanted for c in p.text) / max(1, len(p.text))} for p in predictions]


def fit(make_ctx, base, name: str, steps: int = 2, log: list[str] | None = None, **changed):
    """A short PPO training: (artifact, curve)."""
    objective = {"use": "ppo", "reward": "dummy-letters:worth=0", "rollouts": 4, "passes": 2, "beta": 0,
                 "decoder": "sample:temperature=1,top_p=1,max_new_tokens=3", **changed.pop("objective", {})}
    rows = {"train": [question(f"q{i}", f"Which arm, {i}?", "this") for i in range(8)]}
    inputs = {"base": base, "examples": write_examples(make_ctx(f"{name}/data").folder, rows)}
    ctx = make_ctx(f"{name}/fit", inputs)
    ctx.log = (log if log is not None else []).append
    step = Fit(**{"tasks": ({"data": "examples.train", "objective": objective, **changed.pop("task", {})},), "method": "full",
                  "length": {"steps": steps}, "batch_rows": 2, "learning_rate": 1e-2, "schedule": "constant", **changed})
    artifact = step.run(inputs, ctx)
    return artifact, read_lines(artifact.folder / "curve.jsonl")


@pytest.fixture
def stops(monkeypatch):
    """Pico hardly ever ends an answer: every answer counts as ended here."""
    made = OnPolicy._scores

    def scores(self, given, examples, answers):
        return made(self, given, examples, [replace(g, stopped=True) for g in answers])

    monkeypatch.setattr(OnPolicy, "_scores", scores)


def watched(monkeypatch) -> list[list[str]]:
    """The ids of the rows of each step, as a training goes on."""
    seen: list[list[str]] = []
    made = Rollouts.on_batch

    def spy(self, batch):
        found = made(self, batch)
        seen.append(list(found[0]["ids"]))
        return found

    monkeypatch.setattr(Rollouts, "on_batch", spy)
    return seen


# --- formulas ------------------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=143, clause=3, against="hand case")
def test_advantages_of_three_steps_by_hand():
    """gamma 1, lambda .95: d = (-.1 + .3 - .5, -.2 + .4 - .3, 1 - .4), A_3 = .6, A_2 = -.1 + .57, A_1 = -.3 + .4465."""
    found = _ppo.advantages([-0.1, -0.2, 1.0], [0.5, 0.3, 0.4], 1.0, 0.95)
    assert found == pytest.approx([0.1465, 0.47, 0.6], abs=1e-12)
    # gamma .9, lambda .5: d = (1 + .9 - .5, .9 - 1, 2 - 1), A_2 = -.1 + .45, A_1 = 1.4 + .45 * .35.
    assert _ppo.advantages([1.0, 0.0, 2.0], [0.5, 1.0, 1.0], 0.9, 0.5) == pytest.approx([1.5575, 0.35, 1.0], abs=1e-12)


@pytest.mark.oracle(seed=143, clause=3, against="the sum that the recursion stands for")
def test_advantages_are_the_discounted_sum_of_errors():
    rewards, values, gamma, smoothing = [0.3, -1.0, 0.2, 0.9], [0.1, 0.2, -0.4, 0.7], 0.97, 0.8
    errors = [r + gamma * n - v for r, v, n in zip(rewards, values, [*values[1:], 0.0], strict=True)]
    wanted = [sum((gamma * smoothing) ** (k - t) * errors[k] for k in range(t, 4)) for t in range(4)]
    assert _ppo.advantages(rewards, values, gamma, smoothing) == pytest.approx(wanted, abs=1e-12)
    # lambda 1 is the whole return, lambda 0 one step.
    whole = [sum(gamma ** (k - t) * rewards[k] for k in range(t, 4)) - values[t] for t in range(4)]
    assert _ppo.advantages(rewards, values, gamma, 1.0) == pytest.approx(whole, abs=1e-12)
    assert _ppo.advantages(rewards, values, gamma, 0.0) == pytest.approx(errors, abs=1e-12)


@pytest.mark.oracle(clause="rewards of tokens, adaptive weight, whitening", against="TRL 0.11's formulas by hand")
def test_rewards_weight_and_whitening():
    assert _ppo.token_rewards([-1.0, -2.0], [-1.5, -1.0], 3.0, 0.2) == pytest.approx([-0.1, 3.2])
    # error = clip(kl / target - 1, ± .2), beta x (1 + error x answers / 10 000).
    assert _ppo.next_beta(0.2, 6.6, 6.0, 16) == pytest.approx(0.2 * (1 + 0.1 * 16 / 10_000))
    assert _ppo.next_beta(0.2, 60.0, 6.0, 16) == pytest.approx(0.2 * (1 + 0.2 * 16 / 10_000))
    assert _ppo.next_beta(0.2, -9.0, 6.0, 500) == pytest.approx(0.2 * (1 - 0.2 * 0.05))
    rows = _ppo.whitened([[1.0, 2.0], [3.0]])
    assert [x for r in rows for x in r] == pytest.approx([-1.0, 0.0, 1.0], abs=1e-6)
    assert _ppo.whitened([[0.0, 0.0], [0.0]]) == [[0, 0], [0]] and _ppo.whitened([[5.0]]) == [[0]]


@pytest.mark.oracle(clause="clipped losses", against="hand cases")
def test_clipped_losses_by_hand():
    log_ratio = torch.tensor([0.0, 0.5, 0.5, -0.5, -0.5], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    loss = _ppo.policy_loss(log_ratio, advantage, 0.2)
    up, down = math.exp(0.5), math.exp(-0.5)
    assert loss.tolist() == pytest.approx([-2.0, -1.2, up, -down, 0.8])
    loss.sum().backward()
    # Where the clipped side is the larger one nothing is learned.
    assert log_ratio.grad.tolist() == pytest.approx([-2.0, 0.0, up, -down, 0.0])
    value, before = torch.tensor([1.0, 0.1, 1.0]), torch.tensor([0.0, 0.0, 0.0])
    wanted = torch.tensor([1.0, 1.0, -1.0])
    assert _ppo.value_loss(value, before, wanted, 0.2).tolist() == pytest.approx([0.32, 0.405, 2.0])


# --- what must not move --------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=143, clause=2, against="bit for bit")
@pytest.mark.parametrize("architecture", ["decoder", "encoder-decoder"])
def test_without_reward_and_with_zero_values_the_policy_stays_as_it_is(make_ctx, bases, architecture, stops):
    artifact, curve = fit(make_ctx, bases[architecture], "zero", steps=6)
    assert all(row["parts"] == {"policy": 0, "value": 0} and abs(row["ratio"] - 1) < 1e-5 for row in curve)
    tuned = add_tuned(load_base(bases[architecture]), artifact).module.state_dict()
    for name, before in load_base(bases[architecture]).module.state_dict().items():
        assert torch.equal(before, tuned[name]), name
    assert all(not t.any() for t in load_file(artifact.folder / "heads.safetensors").values())
    # With a random value head its errors move everything.
    other, curve = fit(make_ctx, bases[architecture], "random", steps=2, task={"head": "value:start=random"})
    assert curve[0]["parts"]["value"] > 0
    moved = add_tuned(load_base(bases[architecture]), other).module.state_dict()
    assert any(not torch.equal(moved[n], t) for n, t in tuned.items())


@pytest.mark.oracle(seed=143, clause=4, against="closed form")
def test_the_ratio_is_one_in_the_first_pass_and_not_later(make_ctx, pico, stops, monkeypatch):
    ratios: list[torch.Tensor] = []
    made = _ppo.policy_loss

    def spy(log_ratio, advantage, clip):
        ratios.append(log_ratio.detach().exp())
        return made(log_ratio, advantage, clip)

    monkeypatch.setattr(_ppo, "policy_loss", spy)
    # One step a pass; dropout of the adapter would show at once.
    _, curve = fit(make_ctx, pico, "ratio", steps=2, batch_rows=4, method="lora:rank=4,dropout=0.5",
                   objective={"reward": "dummy-letters:wanted=aeiou"})
    assert ratios[0].sub(1).abs().max() < 1e-5 and curve[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert ratios[1].sub(1).abs().max() > 1e-3


@pytest.mark.oracle(seed=143, clause=5, against="the arm that is rewarded")
def test_a_bandit_comes_to_pull_the_rewarded_arm(make_ctx, pico, stops):
    """One token an answer; tokens that begin with a vowel are the rewarded arm."""
    _, curve = fit(make_ctx, pico, "bandit", steps=120, batch_rows=16, method="full", learning_rate=3e-3, objective={
        "reward": "dummy-letters:begins=aeiou", "rollouts": 16, "passes": 3,
        "decoder": "sample:temperature=1,top_p=1,max_new_tokens=1"})
    rewards = [row["reward"] for row in curve if "reward" in row]
    assert sum(rewards[:3]) / 3 < 0.4 and sum(rewards[-3:]) / 3 > 0.9, rewards


# --- rounds --------------------------------------------------------------------------------------------------------

def test_a_round_is_replayed_after_a_kill(make_ctx, pico, stops):
    changed: dict[str, Any] = {"steps": 7, "objective": {"reward": "dummy-letters:wanted=aeiou", "beta": 0.1}}
    whole, curve = fit(make_ctx, pico, "whole", **changed)
    stop = {"regularizers": ("dummy-stop:at=5",), "checkpoint_seconds": 0}
    with pytest.raises(dummies.Killed):
        fit(make_ctx, pico, "killed", **changed, **stop)
    again, resumed = fit(make_ctx, pico, "killed", **changed, **stop)
    drop = ("seconds",)
    assert [{k: v for k, v in r.items() if k not in drop} for r in resumed] == [
        {k: v for k, v in r.items() if k not in drop} for r in curve]
    one, two = (load_file(next(a.folder.glob("model*.safetensors"))) for a in (whole, again))
    assert all(torch.equal(t, two[n]) for n, t in one.items())


def test_the_rows_of_a_round_are_passed_over_as_often_as_asked(make_ctx, pico, stops, monkeypatch):
    seen = watched(monkeypatch)
    fit(make_ctx, pico, "passes", steps=8)
    rounds = [sorted(i for step in seen[at:at + 4] for i in step) for at in (0, 4)]
    for ids in rounds:
        assert len(ids) == 8 and len(set(ids)) == 4 and ids[::2] == ids[1::2], "each row twice"
    assert not {i.split("/")[0] for i in rounds[0]} & {i.split("/")[0] for i in rounds[1]}, "an epoch takes every prompt once"


def test_the_value_head_lies_beside_the_weights_and_the_model_still_answers(make_ctx, pico, stops):
    artifact, _ = fit(make_ctx, pico, "head", steps=3, objective={"reward": "dummy-letters:worth=1"})
    model = add_tuned(load_base(pico), artifact)
    assert not model.heads and artifact.meta["heads"] == {}
    assert artifact.meta["training_heads"] == {"examples.train": {"use": "value", "start": "zero"}}
    load_heads(model, artifact, "training_heads")
    kept = load_file(artifact.folder / "heads.safetensors")
    assert torch.equal(model.heads["examples.train"].weight, kept["examples.train.weight"]) and kept["examples.train.bias"] > 0


# --- bad input -----------------------------------------------------------------------------------------------------

def test_what_teaches_nothing_is_said(make_ctx, pico):
    log: list[str] = []
    _, curve = fit(make_ctx, pico, "flat", steps=2, log=log, objective={"reward": "dummy-letters:worth=3"})
    assert any("all 4 answers of this round are worth 0: nothing tells them apart" in line for line in log)
    assert any("4 of 4 answers were cut off at max_new_tokens=3 and are worth 0" in line for line in log)
    assert curve[0]["cut_off"] == 1 and curve[0]["reward"] == 0, "what is cut off is worth 0 and counted"


def test_a_policy_that_runs_away_ends_the_round(make_ctx, pico, stops):
    log: list[str] = []
    fit(make_ctx, pico, "away", steps=4, log=log, batch_rows=4, learning_rate=0.5,
        objective={"reward": "dummy-letters:wanted=aeiou", "passes": 4, "stop_kl": 0.01})
    assert any("ends after 1 of 4 passes: the policy is" in line and "stop_kl=0.01" in line for line in log), log


def test_what_cannot_be_learned_from_is_refused(make_ctx, pico, stops):
    with pytest.raises(UserError, match="reward dummy-letters has no value for row q"):
        fit(make_ctx, pico, "none", objective={"reward": "dummy-letters"})
    with pytest.raises(UserError, match=r"head of one output; this one has 2"):
        class TwoHead(build("head", "value").__class__, name="dummy-two"):  # type: ignore[misc]
            """Two numbers a token."""

            def build(self, body, labels):
                return torch.nn.Linear(body.width, 2)

        fit(make_ctx, pico, "two", task={"head": "dummy-two"})
    with pytest.raises(UserError, match="clip"):
        build("objective", "ppo:clip=0")
