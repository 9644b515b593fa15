"""ruled: with factor 1 a rule changes nothing, and one that takes the tuned weights' place leaves no trace of the base."""

from __future__ import annotations

import torch

from luthier.core.component import build
from luthier.engine.spectra import matrices
from tests.contracts.workbench import short_fit, training_data


def test_factor_one_is_the_tuned_model_and_factor_zero_is_not(engine, pico, make_ctx):
    inputs = {"base": pico, "examples": training_data(make_ctx("rows"))}
    tuned = short_fit("decoder", method="lora:rank=2", learning_rate=0.1).run(inputs, make_ctx("tuned", inputs))
    found = {}
    for factor in (0.0, 1.0):
        rule = {"use": "rescale-intruders", "factor": factor, "k": 4, "eps": 0.9}
        made = build("step", {"use": "ruled", "rule": rule}).run({"base": pico, "tuned": tuned}, make_ctx(f"ruled-{factor}"))
        found[factor] = matrices(engine, made)
    merged = matrices(engine, pico, tuned)
    assert found[1.0].keys() == merged.keys()
    assert all(torch.equal(found[1.0][n], merged[n]) for n in merged)
    assert any(not torch.equal(found[0.0][n], merged[n]) for n in merged)
