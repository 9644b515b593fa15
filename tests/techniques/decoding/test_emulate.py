"""Emulated fine-tuning: the hand case, its limits, and speculative samples that are exact."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.rng import Rng
from luthier.engine.generation import generate
from luthier.engine.models import load_base
from luthier.techniques.decoding.emulate import accepted

BIG, TUNED, BASE = (.5, .3, .2), (.2, .6, .2), (.4, .4, .2)


def states(big=BIG, tuned=TUNED, base=BASE, **more) -> dict[str, torch.Tensor]:
    """Logits by role, each shifted by a constant of its own."""
    given = {"big": big, "policy": tuned, "small_base": base, **more}
    return {role: torch.tensor([p], dtype=torch.float64).log() + n for n, (role, p) in enumerate(given.items())}


def chances(decoder: str, given: dict[str, torch.Tensor]) -> list[float]:
    return build("decoder", decoder).scores(given)[0].exp().tolist()


def wild(seed: int = 0, rows: int = 5, size: int = 17, roles=("big", "policy", "small_base")) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {role: 3 * torch.randn(rows, size, generator=generator) for role in roles}


@pytest.mark.oracle(seed=116, clause=4, against="hand case")
def test_three_tokens_by_hand():
    """.5 x .2 / .4, .3 x .6 / .4, .2 x .2 / .2 = .25, .45, .2, of .9."""
    assert chances("emulate", states()) == pytest.approx([.25 / .9, .5, .2 / .9], abs=1e-6)
    assert [round(p, 4) for p in chances("emulate", states())] == [.2778, .5, .2222]


@pytest.mark.oracle(seed=116, clause=1, against="limit")
def test_a_big_that_is_the_small_base_gives_the_tuned_model():
    given = wild()
    same = build("decoder", "emulate").scores({**given, "big": given["small_base"]})
    assert torch.allclose(same, given["policy"].log_softmax(-1), atol=1e-5)


@pytest.mark.oracle(seed=116, clause=2, against="limit")
def test_no_tuning_gives_the_big_model():
    given = wild()
    plain = build("decoder", "emulate").scores({**given, "policy": given["small_base"]})
    assert torch.allclose(plain, given["big"].log_softmax(-1), atol=1e-5)
    assert torch.allclose(build("decoder", "emulate:alpha=0").scores(given), given["big"].log_softmax(-1), atol=1e-5)


@pytest.mark.oracle(seed=116, clause=3, against="closed form")
@pytest.mark.parametrize("decoder", ["emulate", "emulate:filter=nucleus", "emulate:alpha=0.3",
                                     "emulate:alpha=2,filter=nucleus,p=0.5"])
def test_probabilities_sum_to_one(decoder):
    assert build("decoder", decoder).scores(wild(3)).exp().sum(-1).tolist() == pytest.approx([1] * 5, abs=1e-5)


@pytest.mark.oracle(seed=116, clause=6, against="limits")
@pytest.mark.oracle(seed=116, clause=7, against="limits")
def test_mixed_tunings_and_the_filter_at_their_ends():
    roles = ("big", "policy", "small_base", "tuned_1", "base_1")
    given = wild(1, roles=roles)

    def mixed(share: float) -> torch.Tensor:
        pair = {"tuned": "b", "base": "c", "weight": 1 - share}
        return build("decoder", {"use": "emulate", "alpha": share, "deltas": [pair]}).scores(given)

    alone = build("decoder", "emulate")
    assert torch.allclose(mixed(1.0), alone.scores({r: given[r] for r in roles[:3]}), atol=1e-5)
    other = {"big": given["big"], "policy": given["tuned_1"], "small_base": given["base_1"]}
    assert torch.allclose(mixed(0.0), alone.scores(other), atol=1e-5)
    logs = {r: given[r].log_softmax(-1) for r in roles}
    half = logs["big"] + .5 * (logs["policy"] - logs["small_base"]) + .5 * (logs["tuned_1"] - logs["base_1"])
    assert torch.allclose(mixed(0.5), half.log_softmax(-1), atol=1e-5)
    three = {r: given[r] for r in roles[:3]}
    assert torch.equal(build("decoder", "emulate:filter=nucleus,p=1").scores(three), alone.scores(three))
    least = build("decoder", "emulate:filter=nucleus,p=0").scores(three)
    top = logs["policy"].argmax(-1, keepdim=True)
    small = logs["policy"].scatter_add(-1, top, (logs["big"] - logs["small_base"]).gather(-1, top))
    assert torch.allclose(least, small.log_softmax(-1), atol=1e-5), "the small model but for its top token"


@pytest.mark.oracle(seed=116, clause=7, against="hand case")
def test_the_filter_up_scales_likely_tokens_alone():
    """Tuned (.2, .6, .2), big / base (1.25, .75, 1): at p = .5 only the second is likely and becomes .45; .2 and .2 stay."""
    assert chances("emulate:filter=nucleus,p=0.5", states()) == pytest.approx([.2 / .85, .45 / .85, .2 / .85], abs=1e-6)


@pytest.mark.oracle(seed=116, clause=8, against="invariance")
@pytest.mark.parametrize("decoder", ["emulate", "emulate:filter=nucleus,p=0.6,alpha=1.5"])
def test_a_constant_added_to_any_model_changes_nothing(decoder):
    given, part = wild(2), build("decoder", decoder)
    for role in given:
        moved = {**given, role: given[role] + torch.tensor([5.0, -3.0, 100.0, 0.1, 7.0])[:, None]}
        assert torch.allclose(part.scores(moved), part.scores(given), atol=1e-4)


@pytest.mark.oracle(seed=116, clause=5, against="chi-square against the distribution itself")
@pytest.mark.parametrize("q", [(.2, .6, .2), (.9, .05, .05), (0., .5, .5)])
def test_speculative_samples_are_exact(q):
    """10,000 blocks of one draft: the token in the first place is a sample of p, and the second is of its own p."""
    p, drafted = torch.tensor([[.5 / 1.8, .9 / 1.8, .4 / 1.8], [.1, .2, .7]]), torch.tensor(q)
    rng = Rng(5)
    first, second = [0, 0, 0], [0, 0, 0]
    drawn = torch.multinomial(drafted, 10_000, replacement=True, generator=torch.Generator().manual_seed(1)).tolist()
    numbers = rng("all").random((10_000, 3))
    place = {"keep": 0, "again": 1, "more": 2}
    for k, token in enumerate(drawn):
        block = accepted([token], [drafted], p, lambda name, at, k=k: float(numbers[k, place[name]]))
        first[block[0]] += 1
        if len(block) == 2:
            second[block[1]] += 1
    assert chisquare(first, [10_000 * x for x in p[0].tolist()]).pvalue > 1e-3
    assert chisquare(second, [sum(second) * x for x in p[1].tolist()]).pvalue > 1e-3


def test_speculative_and_plain_greedy_answers_are_equal(pico):
    model, moved = load_base(pico), load_base(pico)
    with torch.no_grad():
        for n, weight in enumerate(moved.module.parameters()):
            weight.add_(0.3 * torch.sin(torch.arange(weight.numel()).view(weight.shape) + n))
    speakers = {"policy": model, "big": moved, "small_base": load_base(pico)}
    prompts = [[1, 7, 9, 30], [1, 40, 41]]
    plain, ahead = (generate(speakers, prompts, build("decoder", f"emulate:max_new_tokens=7{more}"), Rng(0))
                    for more in ("", ",draft_tokens=3"))
    assert [g.ids for g in plain] == [g.ids for g in ahead] and all(g.tokens == 7 for g in ahead)
    alone = generate({"policy": model}, prompts, build("decoder", "greedy:max_new_tokens=7"), Rng(0))
    assert [g.ids for g in plain] != [g.ids for g in alone]
    same = generate({**speakers, "big": load_base(pico)}, prompts, build("decoder", "emulate:max_new_tokens=7"), Rng(0))
    assert [g.ids for g in same] == [g.ids for g in alone], "with the small base as the big one it is the tuned model"


def test_models_that_do_not_go_together_are_refused(pico, pico_encoder_decoder):
    class Tokens:
        """A tokenizer in which one token is another."""

        def __init__(self, given, **changed):
            self.vocab = {**given.get_vocab()}
            for old, new in changed.items():
                self.vocab[new] = self.vocab.pop(old)
            self.chat_template = None

        def get_vocab(self):
            return self.vocab

    model = load_base(pico)
    known = sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])
    token, place = known[70]
    other = replace(model, tokenizer=Tokens(model.tokenizer, **{token: "another"}))
    decoder = build("decoder", "emulate")
    with pytest.raises(UserError, match=rf"\(big\) reads other tokens.*token {place} is 'another' there"):
        generate({"policy": model, "big": other, "small_base": model}, [[1, 2]], decoder, Rng(0))
    longer = Tokens(model.tokenizer)
    longer.vocab["further"] = len(longer.vocab)
    decoder.check({"policy": model, "big": replace(model, tokenizer=longer), "small_base": model})
    longer.chat_template = "{{ other }}"
    here = Tokens(model.tokenizer)
    here.chat_template = "{{ one }}"
    with pytest.raises(UserError, match="another chat template"):
        decoder.check({"policy": replace(model, tokenizer=here), "big": replace(model, tokenizer=longer)})
    for wrong in ("alpha=.nan", "p=2", "temperature=-1", "filter=all"):
        with pytest.raises(UserError):
            build("decoder", f"emulate:{wrong}")


def test_a_token_that_one_model_lacks_is_never_chosen():
    given = wild(4)
    given["big"] = torch.cat([given["big"], torch.full((5, 2), 50.0)], -1)
    scores = build("decoder", "emulate").scores({**given, "policy": torch.cat([given["policy"], torch.full((5, 3), 90.0)], -1)})
    assert scores.shape == (5, 20) and bool(torch.isneginf(scores[:, 17:]).all()) and not scores.isnan().any()
    assert not math.isnan(float(scores[:, :17].sum()))
