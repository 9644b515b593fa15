"""rescale-intruders: bits that stay, parts that sum up, and a planted spike that goes."""

from __future__ import annotations

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.engine.spectra import Spectrum, rescaled
from tests.techniques.evaluation.test_spectra import SIZE, geometric, spiked


def applied(spec, base, tuned):
    return build("weight_rule", spec).apply(["w"], [{"w": base}, {"w": tuned}], None)["w"]


@pytest.mark.oracle(seed=96, clause=3, against="the tuned weights, bit for bit")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_factor_of_one_leaves_every_bit(dtype):
    base, tuned = geometric().to(dtype), spiked(geometric()).to(dtype)
    assert torch.equal(applied("rescale-intruders:factor=1", base, tuned), tuned)
    assert not torch.equal(applied("rescale-intruders:factor=0.9", base, tuned), tuned)


@pytest.mark.oracle(seed=96, clause=4, against="the weights themselves")
def test_the_parts_of_all_directions_sum_to_the_weights():
    tuned = spiked(geometric())[:, :25]
    spectrum = Spectrum.of(tuned)
    parts = [tuned - rescaled(tuned, spectrum, torch.tensor([j]), 0.0) for j in range(25)]
    assert torch.allclose(sum(parts), tuned, atol=1e-5)
    assert torch.allclose(rescaled(tuned, spectrum, torch.arange(25), 0.5), 0.5 * tuned, atol=1e-5)


@pytest.mark.oracle(seed=96, clause=4, against="the singular values of the result")
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.25])
def test_only_the_intruders_value_is_multiplied(factor):
    base, tuned = geometric(), spiked(geometric())
    values = torch.linalg.svdvals(tuned)
    wanted = torch.cat([factor * values[:1], values[1:]]).sort(descending=True).values
    found = torch.linalg.svdvals(applied(f"rescale-intruders:factor={factor}", base, tuned))
    assert torch.allclose(found, wanted, atol=1e-5)
    control = torch.linalg.svdvals(applied(f"rescale-intruders:factor={factor},choose=control", base, tuned))
    wanted = torch.cat([values[:1], factor * values[1:2], values[2:]]).sort(descending=True).values
    assert torch.allclose(control, wanted, atol=1e-5)


def test_what_tuning_left_alone_and_what_is_no_matrix_stays():
    rule = build("weight_rule", "rescale-intruders:factor=0")
    base = {"norm": torch.ones(4), "w": geometric()}
    tuned = {"norm": torch.zeros(4), "w": geometric()}
    found = rule.apply(["norm", "w"], [base, tuned], None)
    assert torch.equal(found["norm"], tuned["norm"]) and torch.equal(found["w"], tuned["w"])


def test_models_that_do_not_fit_are_refused():
    rule = build("weight_rule", "rescale-intruders")
    with pytest.raises(UserError, match="takes two models, the base and the tuned one; found 1"):
        rule.apply(["w"], [{"w": geometric()}], None)
    with pytest.raises(UserError, match=r"w is \(40, 40\) in the base and \(3, 40\) in the tuned model"):
        applied("rescale-intruders", geometric(), geometric()[:3])
    with pytest.raises(UserError, match=f"k = 60 is above {SIZE}"):
        applied("rescale-intruders:k=60", geometric(), spiked(geometric()))
