"""linear, slerp, task-arithmetic, ties and dare: mergekit's numbers, closed forms, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from tests.techniques.weights._recorded import RECORDED, cases, distance, merged

SUMS = [case for start in ("linear", "slerp", "task-arithmetic", "ties") for case in cases(start)]


def one(*values: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values)}


@pytest.mark.oracle(clause="the sums of mergekit", against=f"mergekit {RECORDED['versions']['mergekit']}")
@pytest.mark.parametrize("case", SUMS, ids=lambda c: c["title"])
def test_what_mergekit_makes_of_the_same_tensors(case):
    assert distance(case) <= 1e-6


@pytest.mark.oracle(clause="a sum of weights", against="a case worked by hand")
def test_linear_by_hand():
    found = merged("linear:weights=[1,3]", [one(0, 2), one(4, 2)])["w"]
    assert found.tolist() == [3.0, 2.0]
    assert merged("linear", [one(1, -1), one(3, 5), one(2, 2)])["w"].tolist() == [2.0, 2.0]


@pytest.mark.oracle(clause="ends and middle of the arc", against="closed form on the unit circle")
def test_slerp_walks_the_arc():
    angle = 1.1
    ends = [one(1, 0), one(math.cos(angle), math.sin(angle))]
    for t in (0.0, 0.25, 0.5, 1.0):
        found = merged(f"slerp:t={t}", ends)["w"]
        assert torch.allclose(found, torch.tensor([math.cos(t * angle), math.sin(t * angle)]), atol=1e-6)
    straight = merged("slerp:t=0.25", [one(1, 0), one(3, 0)])["w"]
    assert straight.tolist() == [1.5, 0.0]


@pytest.mark.oracle(clause="trim, elect, merge", against="a case worked by hand")
def test_ties_by_hand():
    base = one(0, 0, 0, 0)
    #            kept of each: the two largest;  signs elected: +, -, +, (nobody)
    models = [one(5, -1, 3, 0.5), one(0.2, -4, -2, 0.1)]
    assert merged("ties:density=[0.5]", [base, *models])["w"].tolist() == [5.0, -4.0, 3.0, 0.0]
    assert merged("ties:density=[1]", [base, *models])["w"].tolist() == pytest.approx([2.6, -2.5, 3.0, 0.3])


@pytest.mark.oracle(clause="dropped and rescaled, right on average", against="the binomial distribution")
def test_dare_keeps_its_share_and_the_mean():
    base, model = {"w": torch.zeros(40_000)}, {"w": torch.ones(40_000)}
    found = merged("dare:density=[0.2]", [base, model])["w"]
    assert set(found.unique().tolist()) == {0.0, 5.0}
    assert abs(float((found > 0).float().mean()) - 0.2) < 5 * math.sqrt(0.2 * 0.8 / 40_000)
    assert merged("dare:density=[1]", [base, model])["w"].equal(model["w"])
    assert set(merged("dare:density=[0.2],rescale=false", [base, model])["w"].unique().tolist()) == {0.0, 1.0}


def test_dare_draws_by_seed_name_and_model():
    base = {"a": torch.zeros(400), "b": torch.zeros(400)}
    model = {"a": torch.ones(400), "b": torch.ones(400)}
    models = [base, model, {n: 10 * t for n, t in model.items()}]
    first = merged("dare:density=[0.5]", models)
    again = merged("dare:density=[0.5]", [dict(reversed(m.items())) for m in models])
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["a"], first["b"]) and set(first["a"].tolist()) == {0.0, 2.0, 20.0, 22.0}
    assert not torch.equal(first["a"], merged("dare:density=[0.5]", models, seed=1)["a"])


def test_dare_with_elected_signs_takes_part_only_where_they_agree():
    base = {"w": torch.zeros(2000)}
    models = [{"w": torch.full((2000,), 3.0)}, {"w": torch.full((2000,), -1.0)}]
    found = merged("dare:density=[0.5],elect=true", [base, *models])["w"]
    assert set(found.unique().tolist()) == {0.0, 6.0, -2.0}


def test_inputs_are_left_as_they_are():
    for spec in ("linear", "slerp", "task-arithmetic", "ties", "dare", "dare:elect=true", "model-stock"):
        models = [one(0.0, 1.0, 2.0), one(1.0, 3.0, -1.0), one(2.0, -3.0, 0.5)][:2 if spec == "slerp" else 3]
        before = [m["w"].clone() for m in models]
        merged(spec, models)
        assert all(torch.equal(m["w"], b) for m, b in zip(models, before, strict=True)), spec


@pytest.mark.parametrize(("spec", "models", "said"), [
    ("linear:weights=[1,2,3]", 2, r"linear: weights = \[1.0, 2.0, 3.0\] are 3 numbers for 2 models"),
    ("linear:weights=[1,-1]", 2, "sum to 0.*normalize=false"),
    ("task-arithmetic:weights=[1,2]", 3, "2 numbers for 3 models"),
    ("ties:density=[0]", 2, "density = 0.0 is no share"),
    ("dare:density=[1.5]", 2, "density = 1.5 is no share"),
    ("ties:density=[0.1,0.2]", 3, "2 numbers for 3 models"),
])
def test_numbers_that_do_not_fit_are_refused(spec, models, said):
    with pytest.raises(UserError, match=said):
        build("weight_rule", spec).check(models)
