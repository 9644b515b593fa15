"""Schedules against torch's own and transformers' classes, and against cases worked by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError

STEPS, WARMUP = 40, 0.2
RISING = int(WARMUP * STEPS)


def ours(spec: str, steps: int = STEPS) -> list[float]:
    schedule = build("schedule", spec)
    return [schedule.factor(step, steps) for step in range(steps)]


def theirs(name: str, **given) -> list[float]:
    """transformers' factors. They begin at 0, ours one step later: the first step must move something."""
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=RISING + 1, **given)
    found = []
    for _ in range(STEPS + 1):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found[1:]


@pytest.mark.parametrize("spec, name, given", [
    ("linear:warmup=0.2", "linear", {}),
    ("cosine:warmup=0.2", "cosine", {}),
    ("cosine:warmup=0.2,end=0.3", "cosine_with_min_lr", {"scheduler_specific_kwargs": {"min_lr_rate": 0.3}}),
    ("polynomial:warmup=0.2,power=3,end=0.25", "polynomial",
     {"scheduler_specific_kwargs": {"power": 3, "lr_end": 0.25}}),
])
@pytest.mark.oracle(clause="named schedules", against="transformers")
def test_a_schedule_of_planned_length_is_transformers(spec, name, given):
    assert ours(spec) == pytest.approx(theirs(name, num_training_steps=STEPS + 1, **given), abs=1e-12)


@pytest.mark.oracle(clause="inverse square root", against="transformers")
def test_inverse_sqrt_is_transformers():
    wanted = theirs("inverse_sqrt", scheduler_specific_kwargs={"timescale": 16})
    assert ours("inverse-sqrt:warmup=0.2,hold=16") == pytest.approx(wanted, abs=1e-12)
    assert ours("inverse-sqrt:warmup=0.2,hold=16", 400)[80 + 16] == pytest.approx(math.sqrt(0.5))


@pytest.mark.oracle(clause="constant with warm-up", against="transformers")
def test_constant_with_warmup_is_transformers():
    assert ours("constant:warmup=0.2") == pytest.approx(theirs("constant_with_warmup"), abs=1e-12)


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
@pytest.mark.oracle(clause="warm-up, stable, decay", against="transformers")
def test_wsd_is_transformers(shape):
    wanted = theirs("warmup_stable_decay", num_training_steps=STEPS + 1,
                    scheduler_specific_kwargs={"num_decay_steps": 10, "decay_type": shape})
    found = ours(f"wsd:warmup=0.2,decay=0.25,shape={shape}")
    # Their warm-up has one step more, hence their decay begins at the same step.
    assert found == pytest.approx(wanted, abs=1e-12)
    assert found.count(1.0) == STEPS - RISING - 10 + 1


def test_a_mutant_of_each_shape_is_seen():
    for shape in ("linear", "cosine", "1-sqrt"):
        wanted = ours(f"wsd:warmup=0.2,decay=0.25,shape={shape}")
        assert max(abs(a - 1.05 * b) for a, b in zip(wanted, wanted, strict=True)) > 0.04
        for other in {"linear", "cosine", "1-sqrt"} - {shape}:
            assert max(abs(a - b) for a, b in zip(wanted, ours(f"wsd:warmup=0.2,decay=0.25,shape={other}"), strict=True)) > 0.03


def test_wsd_refuses_more_than_all_steps():
    with pytest.raises(UserError, match=r"warmup \+ decay = 1.1 is more"):
        build("schedule", "wsd:warmup=0.6,decay=0.5")


# --- by torch's own names ------------------------------------------------------------------------------------------

@pytest.mark.oracle(clause="torch's schedules", against="closed form")
def test_cosine_annealing_is_its_closed_form():
    found = ours("torch:{type: CosineAnnealingLR, eta_min: 0.1}")
    wanted = [0.1 + 0.9 * (1 + math.cos(math.pi * t / STEPS)) / 2 for t in range(STEPS)]
    assert found == pytest.approx(wanted, abs=1e-9)
    assert ours("torch:{type: CosineAnnealingLR, T_max: 10}")[10] == pytest.approx(0, abs=1e-9)


@pytest.mark.oracle(clause="torch's schedules", against="closed form")
def test_steps_and_exponents_are_their_closed_forms():
    assert ours("torch:{type: StepLR, step_size: 7, gamma: 0.5}") == pytest.approx([0.5 ** (t // 7) for t in range(STEPS)])
    assert ours("torch:{type: ExponentialLR, gamma: 0.9}") == pytest.approx([0.9**t for t in range(STEPS)])
    assert ours("torch:{type: MultiStepLR, milestones: [3, 9], gamma: 0.1}")[8:10] == pytest.approx([0.1, 0.01])


def test_one_cycle_rises_to_the_peak_and_falls():
    found = ours("torch:{type: OneCycleLR, pct_start: 0.25}")
    assert max(found) == pytest.approx(1.0) and found[0] == pytest.approx(1 / 25) and found[-1] < 1e-4
    top = found.index(max(found))
    assert all(a < b for a, b in pairwise(found[:top + 1])) and all(a > b for a, b in pairwise(found[top:]))


def test_a_factor_is_pure_in_step_and_steps():
    schedule = build("schedule", "torch:{type: CosineAnnealingWarmRestarts, T_0: 5, T_mult: 2}")
    order = [3, 17, 0, 39, 3]
    assert [schedule.factor(t, STEPS) for t in order] == [ours(
        "torch:{type: CosineAnnealingWarmRestarts, T_0: 5, T_mult: 2}")[t] for t in order]


@pytest.mark.parametrize("spec, said", [
    ("torch:{type: CosineAnnealing}", "Did you mean 'CosineAnnealingLR'"),
    ("torch:{type: ReduceLROnPlateau}", "the step alone decides"),
    ("torch:{type: LambdaLR}", "the step alone decides"),
    ("torch:{type: StepLR}", "step_size"),
    ("torch:{type: StepLR, step_sise: 3}", "Did you mean 'step_size'"),
    ("torch:{type: StepLR, step_size: soon}", "refused StepLR"),
])
def test_what_torch_can_not_drive_is_refused_with_words(spec, said):
    with pytest.raises(UserError, match=said):
        schedule = build("schedule", spec)
        schedule.factor(3, STEPS)


def test_a_schedule_that_ends_too_early_is_refused():
    schedule = build("schedule", "torch:{type: OneCycleLR, total_steps: 10}")
    assert schedule.factor(9, 10) < 1e-3
    with pytest.raises(UserError, match="over 20 steps"):
        schedule.factor(0, 20)
