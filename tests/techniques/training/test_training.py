"""Optimizers and schedules against their formulas."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from luthier.core.component import build


def test_linear_rises_and_falls_as_written():
    schedule = build("schedule", "linear:warmup=0.2,end=0.1")
    factors = [schedule.factor(step, 10) for step in range(10)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert factors[-1] == pytest.approx(1 - 0.9 * 7 / 8)
    assert all(a > b for a, b in pairwise(factors[2:]))
    assert schedule.factor(10, 10) == pytest.approx(0.1)


def test_constant_is_constant():
    assert {build("schedule", "constant").factor(step, 7) for step in range(7)} == {1.0}


def test_adamw_takes_the_step_of_the_paper():
    part = build("optimizer", "adamw:beta1=0.8,beta2=0.9,epsilon=0.001,weight_decay=0.1")
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = part.make([{"params": [weight]}], 0.05)
    gradient, value = torch.tensor([0.3, -0.7]), torch.tensor([1.0, -2.0])
    m = v = torch.zeros(2)
    for step in (1, 2, 3):
        weight.grad = gradient.clone()
        optimizer.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        value = value * (1 - 0.05 * 0.1)
        value = value - 0.05 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 0.001)
    assert torch.allclose(weight.detach(), value, atol=1e-6)


def test_a_group_may_have_its_own_rate():
    optimizer = build("optimizer", "adamw").make([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.5},
                                                  {"params": [torch.nn.Parameter(torch.zeros(1))]}], 0.1)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.1]
