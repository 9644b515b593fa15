"""model-stock: the geometry of tunes around a centre, and mergekit's numbers."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core.errors import UserError
from luthier.techniques.weights.model_stock import ratio
from tests.techniques.weights._recorded import cases, distance, merged


def around(models: int, seed: int, dimensions: int = 10_000, sigma: float = 0.02) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base at 0, a centre at distance 1, and tunes around it with noise of standard deviation sigma."""
    rng = torch.Generator().manual_seed(seed)
    centre = torch.nn.functional.normalize(torch.randn(dimensions, generator=rng), dim=0)
    return centre, [centre + sigma * torch.randn(dimensions, generator=rng) for _ in range(models)]


def stock(*tensors: torch.Tensor, spec: str = "model-stock") -> torch.Tensor:
    return merged(spec, [{"w": t} for t in tensors])["w"]


@pytest.mark.oracle(seed=29, clause=1, against="the tuned weights")
def test_equal_changes_give_the_tuned_weights():
    base, tuned = torch.randn(50, generator=torch.Generator().manual_seed(1)), torch.arange(50.0)
    assert torch.allclose(stock(base, tuned, tuned), tuned, atol=1e-5)


@pytest.mark.oracle(seed=29, clause=2, against="the base")
def test_changes_at_right_angles_or_more_give_the_base():
    base = torch.tensor([1.0, 2.0, 3.0])
    change, right = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 0.0])
    assert torch.equal(stock(base, base + change, base + right), base)
    assert torch.equal(stock(base, base + change, base - change), base)


@pytest.mark.oracle(seed=29, clause=3, against="a right angle")
def test_the_result_is_the_foot_of_the_perpendicular_from_the_centre():
    centre = torch.zeros(5).index_fill_(0, torch.tensor([0]), 2.0)
    noises = torch.eye(5)[1:3] * 1.5
    tunes = [centre + n for n in noises]
    found, mean = stock(torch.zeros(5), *tunes), sum(tunes) / 2
    assert abs(float((found - centre) @ mean)) <= 1e-6


@pytest.mark.oracle(seed=29, clause=4, against="a simulated centre")
@pytest.mark.parametrize("models", [2, 3])
def test_it_is_nearer_to_the_centre_than_the_average_and_the_tunes(models):
    for seed in range(3):
        centre, tunes = around(models=models, seed=seed)
        far = [float((t - centre).norm()) for t in (stock(torch.zeros_like(centre), *tunes), sum(tunes) / models)]
        assert far[0] <= far[1] <= min(float((t - centre).norm()) for t in tunes)


@pytest.mark.oracle(seed=29, clause=5, against="the limit")
def test_many_models_need_no_base():
    found = [ratio(0.3, n) for n in (2, 10, 100, 10_000)]
    assert found == sorted(found) and 0.999 < found[-1] < 1


@pytest.mark.oracle(seed=29, clause=6, against="closed form")
def test_two_models():
    for cosine in (0.0, 0.2, 0.5, 0.9, 1.0):
        assert ratio(cosine, 2) == pytest.approx(2 * cosine / (1 + cosine), abs=1e-12)
        first = torch.tensor([1.0, 0.0])
        second = torch.tensor([cosine, math.sqrt(1 - cosine ** 2)])
        wanted = 2 * cosine / (1 + cosine) * (first + second) / 2
        assert torch.allclose(stock(torch.zeros(2), first, second), wanted, atol=1e-6)


@pytest.mark.oracle(seed=29, clause=7, against="mergekit")
@pytest.mark.parametrize("case", cases("model-stock"), ids=lambda c: c["title"])
def test_what_mergekit_makes_of_the_same_tensors(case):
    assert distance(case) <= 1e-5


@pytest.mark.oracle(seed=29, clause=8, against="the same tunes as dense weights")
def test_low_rank_changes_are_dense_ones():
    rng = torch.Generator().manual_seed(3)
    base, shared = torch.randn(12, 9, generator=rng), torch.randn(12, 2, generator=rng)
    factors = [(shared + 0.3 * torch.randn(12, 2, generator=rng), torch.randn(2, 9, generator=rng)) for _ in range(2)]
    factors[1] = (factors[1][0], factors[0][1] + 0.2 * factors[1][1])
    changes = [b @ a for b, a in factors]
    cosine = float((changes[0] * changes[1]).sum() / changes[0].norm() / changes[1].norm())
    t = 2 * cosine / (1 + cosine)
    wanted = base + t * torch.cat([b for b, _ in factors], 1) / 2 @ torch.cat([a for _, a in factors], 0)
    assert cosine > 0 and torch.allclose(stock(base, *(base + c for c in changes)), wanted, atol=1e-5)


def test_a_block_and_a_model_have_one_angle():
    base = {"h.0.a": torch.zeros(2), "h.0.b": torch.zeros(2), "out": torch.zeros(2)}
    one = {"h.0.a": torch.tensor([1.0, 0.0]), "h.0.b": torch.tensor([1.0, 0.0]), "out": torch.tensor([1.0, 1.0])}
    two = {"h.0.a": torch.tensor([0.0, 1.0]), "h.0.b": torch.tensor([1.0, 0.0]), "out": torch.tensor([1.0, 1.0])}
    found = merged("model-stock:granularity=block", [base, one, two])
    t = ratio(0.5, 2)  # cosine of (1 0 1 0) and (0 1 1 0)
    assert torch.allclose(found["h.0.a"], t * torch.tensor([0.5, 0.5])) and torch.allclose(found["out"], one["out"])
    whole = merged("model-stock:granularity=model", [base, one, two])
    assert torch.allclose(whole["out"], ratio(0.75, 2) * one["out"])


def test_a_model_that_is_the_base_is_named():
    with pytest.raises(UserError, match="model 2 is the base itself"):
        stock(torch.zeros(3), torch.ones(3), torch.zeros(3))
    assert torch.equal(stock(torch.ones(3), torch.ones(3), torch.ones(3)), torch.ones(3))
