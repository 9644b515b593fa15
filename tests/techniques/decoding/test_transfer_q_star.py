"""Transfer Q*: a tabular world in which every value can be enumerated, and its limits on models."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import Field

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.kinds import Metric
from luthier.core.rng import Rng
from luthier.engine.generation import generate
from luthier.engine.models import load_base
from luthier.techniques.decoding._guided import expected, guided

VOCABULARY, LENGTH = 3, 3
PATHS = list(itertools.product(range(VOCABULARY), repeat=LENGTH))


class World:
    """Three tokens, three places: a random policy, and a reward of each of the 27 texts."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.base = {p[:n]: torch.randn(VOCABULARY, generator=generator, dtype=torch.float64).softmax(-1)
                     for p in PATHS for n in range(LENGTH)}
        self.rewards, self.others = (dict(zip(PATHS, torch.randn(len(PATHS), generator=generator, dtype=torch.float64).tolist(),
                                              strict=True)) for _ in range(2))

    def chance(self, path: Sequence[int]) -> float:
        made = 1.0
        for n, token in enumerate(path):
            made *= float(self.base[tuple(path[:n])][token])
        return made

    def aligned(self, rewards: dict, beta: float) -> dict:
        """ρ(path) ∝ base(path) exp(reward / beta), by enumeration."""
        weights = {p: self.chance(p) * float(torch.tensor(rewards[p] / beta).exp()) for p in PATHS}
        total = sum(weights.values())
        return {p: w / total for p, w in weights.items()}


def given(rho: dict, begun: tuple[int, ...]) -> dict:
    """ρ of the paths through a beginning."""
    through = {p: w for p, w in rho.items() if p[:len(begun)] == begun}
    total = sum(through.values())
    return {p: w / total for p, w in through.items()}


BEGINNINGS = [(), (1,), (2, 0)]


@pytest.mark.oracle(seed=179, clause=1, against="enumeration")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("begun", BEGINNINGS, ids=str)
def test_direct_values_and_the_policy_are_those_of_enumeration(seed, begun):
    world, alpha = World(seed), 0.7
    rho = world.aligned(world.rewards, 0.5)
    found = []
    for z in range(VOCABULARY):
        paths = given(rho, (*begun, z))
        rewards = torch.tensor([world.rewards[p] for p in paths], dtype=torch.float64)
        # Roll-outs with their chances as weights: what infinitely many samples of ρ would be.
        value = expected(rewards, torch.tensor(list(paths.values()), dtype=torch.float64).log())
        assert float(value) == pytest.approx(sum(w * world.rewards[p] for p, w in paths.items()), abs=1e-6)
        found.append(float(value))
    policy = guided(world.base[begun].log(), torch.tensor(found, dtype=torch.float64), alpha).softmax(-1)
    weights = [float(world.base[begun][z]) * float(torch.tensor(found[z] / alpha).exp()) for z in range(VOCABULARY)]
    assert policy.tolist() == pytest.approx([w / sum(weights) for w in weights], abs=1e-6)


@pytest.mark.oracle(seed=179, clause=2, against="enumeration")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("begun", BEGINNINGS, ids=str)
def test_indirect_values_are_exact_where_they_are_normalised_and_only_there(seed, begun):
    world, beta = World(seed), 0.5
    other, wanted = world.aligned(world.others, beta), world.aligned(world.rewards, beta)
    for z in range(VOCABULARY):
        paths = given(other, (*begun, z))
        rewards, baseline = (torch.tensor([r[p] for p in paths], dtype=torch.float64) for r in (world.rewards, world.others))
        chance = torch.tensor(list(paths.values()), dtype=torch.float64).log()
        value = float(expected(rewards, chance + (rewards - baseline) / beta))
        exact = sum(w * world.rewards[p] for p, w in given(wanted, (*begun, z)).items())
        assert value == pytest.approx(exact, abs=1e-6)
        bare = float((chance.exp() * ((rewards - baseline) / beta).exp() * rewards).sum())
        if len(paths) > 1:
            assert abs(bare - exact) > 1e-3
    # What `normalised: false` computes of equally likely roll-outs.
    weights = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert float(expected(torch.tensor([[2.0, 4.0]], dtype=torch.float64), weights, False)) == pytest.approx(
        (2 + 4 * 2.718281828459045) / 2)


# --- on models -----------------------------------------------------------------------------------------------------

class Vowels(Metric, name="dummy-vowels"):
    """How many vowels an answer has, times a number."""

    times: float = Field(1.0, allow_inf_nan=True, description="what a vowel is worth")

    def score(self, examples: Any, predictions: Any, ctx: Any) -> list[dict[str, Any]]:
        return [{"id": p.id, "value": self.times * sum(c in "aeiou" for c in p.text)} for p in predictions]


PROMPTS = [[1, 7, 9, 30], [1, 40, 41]]


@pytest.fixture(scope="module")
def pair(pico):
    """A model and another one of the same tokens."""
    aligned = load_base(pico)
    with torch.no_grad():
        for n, weight in enumerate(aligned.module.parameters()):
            weight.add_(0.3 * torch.sin(torch.arange(weight.numel()).view(weight.shape) + n))
    return {"policy": load_base(pico), "rollout": aligned}


def written(pair, decoder: Any, engine: Any = None, seed: int = 0) -> list[tuple[int, ...]]:
    part = build("decoder", decoder)
    return [g.ids for g in generate({r: pair[r] for r in ("policy", *part.roles)}, PROMPTS, part, Rng(seed), engine=engine)]


BASIC = {"use": "transfer-q-star", "reward": "dummy-vowels", "top_k": 4, "horizon": 3, "max_new_tokens": 4}


@pytest.mark.oracle(seed=179, clause=3, against="plain decoding")
@pytest.mark.parametrize("reference", ["rollout", "sft"])
def test_a_reward_without_weight_leaves_plain_decoding(pair, reference):
    role = "rollout" if reference == "rollout" else "policy"
    plain = [g.ids for g in generate({"policy": pair[role]}, PROMPTS, build("decoder", "greedy:max_new_tokens=4"), Rng(0))]
    assert written(pair, {**BASIC, "alpha": float("inf"), "reference": reference}) == plain
    assert written(pair, {**BASIC, "alpha": 1e9, "reference": reference}) == plain
    assert written(pair, {**BASIC, "alpha": 0.01, "reference": reference}) != plain


@pytest.mark.oracle(seed=179, clause=4, against="the reward of the finished text")
def test_a_roll_out_to_the_end_is_worth_what_the_finished_text_is(pair, engine):
    from luthier.engine.lookout import Lookout

    part = build("decoder", {**BASIC, "horizon": 5})
    look = Lookout.of(pair, sorted(pair["policy"].stop_ids), engine, PROMPTS, None)
    begun = [(0, [50]), (1, [60, 61])]
    values = part.values(look, PROMPTS, begun, [Rng(0), Rng(1)])
    for (i, answer), value in zip(begun, values, strict=True):
        greedy = build("decoder", "greedy:max_new_tokens=5")
        rest = generate({"policy": pair["rollout"]}, [[*PROMPTS[i], *answer]], greedy, Rng(0))
        text = pair["policy"].tokenizer.decode([*answer, *rest[0].ids], skip_special_tokens=True)
        assert value == sum(c in "aeiou" for c in text)


@pytest.mark.oracle(seed=179, clause=5, against="args")
def test_without_a_horizon_it_is_args(pair):
    args = {"use": "args", "reward": "dummy-vowels", "top_k": 4, "max_new_tokens": 4}
    assert written(pair, {**BASIC, "horizon": 0, "reference": "sft"}) == written(pair, args)


@pytest.mark.oracle(seed=179, clause=6, against="one by one")
@pytest.mark.parametrize("more", [{}, {"rollouts": 3}, {"rollouts": 2, "temperature": 0.7}])
def test_roll_outs_together_and_one_by_one_are_equal(pair, more, monkeypatch):
    from luthier.engine.lookout import Lookout

    together = written(pair, {**BASIC, **more})
    made = Lookout.continued

    def alone(self, role, sequences, decoder, rngs, prompts=None):
        return [made(self, role, [s], decoder, [r], [n])[0] for s, r, n in zip(sequences, rngs, prompts, strict=True)]

    monkeypatch.setattr(Lookout, "continued", alone)
    assert written(pair, {**BASIC, **more}) == together


def test_the_reward_is_followed(pair):
    def vowels(ids: Sequence[tuple[int, ...]]) -> int:
        return sum(c in "aeiou" for i in ids for c in pair["policy"].tokenizer.decode(list(i)))

    plain = vowels(written(pair, "greedy:max_new_tokens=4"))
    for use in ("transfer-q-star", "args", "controlled-decoding"):
        extra = {} if use == "args" else {"horizon": 3}
        keen = {"use": use, "reward": "dummy-vowels", "alpha": 0.01, "max_new_tokens": 4, **extra}
        assert vowels(written(pair, keen)) > plain
    best = {"use": "best-of", "reward": "dummy-vowels", "n": 8, "max_new_tokens": 4}
    assert vowels(written(pair, best)) >= vowels(written(pair, {**best, "n": 1}))


def test_another_reward_of_the_aligned_model_weighs_its_roll_outs(pair):
    direct = written(pair, {**BASIC, "rollouts": 3})
    for more in ({"baseline_reward": "dummy-vowels:times=-3", "beta": 0.1}, {"implicit": True, "beta": 1.0}):
        assert len(written(pair, {**BASIC, "rollouts": 3, **more})) == len(direct)


def test_what_cannot_be_weighed_is_refused(pair):
    for wrong, told in (({"alpha": 0}, "alpha"), ({"beta": 1.0}, "baseline_reward or implicit"),
                        ({"implicit": True}, "both beta"),
                        ({"baseline_reward": "f1", "implicit": True, "beta": 1.0}, "give one"), ({"horizon": -1}, "horizon")):
        with pytest.raises(UserError, match=told):
            build("decoder", {**BASIC, **wrong})
    with pytest.raises(UserError, match="dummy-vowels gives nan"):
        written(pair, {**BASIC, "reward": "dummy-vowels:times=.nan"})
