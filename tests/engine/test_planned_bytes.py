"""Planned weights and optimizer states against tensors that are made and summed: full, LoRA, and nearly all frozen."""

from __future__ import annotations

import pytest
import torch

from luthier.core.artifact import write_examples
from luthier.core.example import question
from luthier.core.step import FitCtx
from luthier.engine import step_plans
from luthier.engine.hardware import Rates
from luthier.engine.steps.fit import Fit


@pytest.mark.oracle(seed=126, clause=4, against="bytes of the tensors, summed")
@pytest.mark.parametrize("method", ["full", "lora", "peft:{type: IA3}", "layer-freezing"])
def test_planned_bytes_are_within_15_percent_of_the_real_tensors(method, pico, tmp_path, make_ctx, engine):
    folder = tmp_path / "rows"
    (folder / "licenses").mkdir(parents=True)
    rows = [question(str(i), f"What stands on plot {i}?", f"oak {i}") for i in range(8)]
    inputs = {"base": pico, "examples": write_examples(folder, {"train": rows})}
    fit = Fit(method=method, length={"steps": 1}, dtype="float32")
    planned = step_plans.plan_fit(fit, inputs, make_ctx("plan", inputs), Rates(1e11, 2e11, 1e10, 1e-5, 1e9)).memory
    model = fit.method.prepare(engine.fresh(pico, torch.float32), FitCtx(**make_ctx("real", inputs).__dict__))
    trained = [p for p in model.module.parameters() if p.requires_grad]
    states = torch.optim.AdamW(trained, lr=0.0)
    for p in trained:
        p.grad = torch.zeros_like(p)
    states.step()
    kept = sum(t.numel() * t.element_size() for s in states.state.values() for t in s.values() if t.dim())
    held = {id(p): p.numel() * p.element_size() for p in model.module.parameters()}
    assert (planned["weights"] + planned["optimizer state"]) * 1e6 == pytest.approx(sum(held.values()) + kept, rel=0.15)
