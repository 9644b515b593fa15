"""The dry pass against what really happens: parameters, micro-batches, FLOP, bytes that live, states of optimizers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from luthier.core.artifact import Artifact, write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.core.recipe import Recipe
from luthier.engine import hardware, metering, planning, step_plans
from luthier.engine.hardware import Rates
from luthier.engine.steps.fit import Fit

HERE = Rates(1e11, 2e11, 1e10, 1e-5, 1e9)


@pytest.fixture
def inputs(pico: Artifact, tmp_path: Path) -> dict[str, Artifact]:
    (tmp_path / "rows" / "licenses").mkdir(parents=True)
    rows = [question(str(i), f"What stands on plot {i} {'by the river ' * (i % 5)}?", f"oak {i}") for i in range(24)]
    return {"base": pico, "examples": write_examples(tmp_path / "rows", {"train": rows})}


@pytest.mark.parametrize("method", ["full", "lora", "lora:rank=2"])
def test_counted_parameters_are_the_trained_ones(method: str, inputs, make_ctx) -> None:
    fit = Fit(method=method, length={"steps": 1})
    planned = step_plans.plan_fit(fit, inputs, make_ctx("plan", inputs), HERE)
    record = fit.run(inputs, make_ctx("fit", inputs)).meta["fit"]
    assert planned.facts["trained parameters"] == record["trained_parameters"]
    assert planned.facts["parameters"] == record["total_parameters"] and planned.facts["steps"] == record["steps"]


def test_counted_tokens_are_the_trained_ones(inputs, make_ctx) -> None:
    """The micro-batches of the dry pass add up to the tokens that the loop counts."""
    from luthier.engine.encoding import encode_tasks
    from luthier.engine.rendering import renderer

    fit = Fit(length={"epochs": 1}, batch_rows=5, micro_rows=2, micro_tokens=64)
    ctx = make_ctx("fit", inputs)
    model = metering.meta_model(Path(inputs["base"].meta["path"]), inputs["base"], torch.float32)
    tasks, _ = encode_tasks(fit.tasks, model, renderer(model, 512), inputs, ctx)
    steps, (cuts,) = step_plans._batches(fit, tasks, model, ctx)
    record = fit.run(inputs, ctx).meta["fit"]
    assert steps == record["steps"] == 5 and sum(c[1] for c in cuts) == record["tokens"]
    assert sum(c[0] for c in cuts) == 24 and max(c[0] for c in cuts) == 2 and max(c[1] for c in cuts) <= 64


def test_counted_flop_are_those_of_the_real_pass(pico: Artifact, engine) -> None:
    """Against torch's own counter over the real model and the real loss, all rows of one length."""
    from luthier.core.kinds import Tokens
    from luthier.engine.batches import collate
    from luthier.engine.forward import Forward

    model = engine.fresh(pico)
    model.module.requires_grad_(True)
    model.module.train()
    run = Forward({"policy": model})
    assert run.packs["policy"]
    rows = [{"input": Tokens([3 + i * 31 + j for j in range(20)], [False] * 10 + [True] * 10)} for i in range(4)]
    batch = collate(rows, list("abcd"), 0)["input"]
    with FlopCounterMode(display=False) as counter:
        run("policy", batch).nll().sum().backward()
    dry = metering.meta_model(Path(pico.meta["path"]), pico, torch.float32)
    dry.module.requires_grad_(True)
    passed = metering.passed(dry, 4, 80, 40)
    assert passed.work.flops["float32"] == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_live_bytes_are_those_that_live() -> None:
    """By hand: two of three 4,000-byte tensors live at most, views are free, and nothing lives in the end."""
    with metering.Meter() as meter:
        a = torch.empty(1000, device="meta")
        b = a.view(10, 100)
        c = a + 1
        del a, b
        assert meter.live == 4000
        d = c * 2
        del c, d
    assert (meter.live, meter.peak) == (0, 8000)
    assert meter.work.moved == 4000 + 2 * 8000 and meter.work.flops == {}


def test_flop_of_a_product_by_hand() -> None:
    with metering.Meter() as meter:
        torch.empty(3, 5, device="meta") @ torch.empty(5, 7, device="meta")
    assert meter.work.flops == {"float32": 2 * 3 * 5 * 7}


def test_states_of_optimizers() -> None:
    assert metering.state_bytes(build("optimizer", "adamw")) == 8


def test_seconds_by_hand() -> None:
    work = metering.Work({"float32": 2e11, "bfloat16": 2e11}, 3e10, 100_000)
    assert work.seconds(HERE) == pytest.approx(2 + 1 + 3 + 1)
    assert (work + work.times(2)).seconds(HERE) == pytest.approx(3 * 7)


def test_memory_of_full_training_by_hand(inputs, make_ctx) -> None:
    """float32: weights once, no masters, two states; the method that moves fewer weights takes less."""
    parts = {}
    for method in ("full", "lora"):
        fit = Fit(method=method, length={"steps": 1}, dtype="float32")
        parts[method] = step_plans.plan_fit(fit, inputs, make_ctx(method, inputs), HERE)
    full = parts["full"]
    count, slack = full.facts["trained parameters"], step_plans.SLACK / 1e6
    assert full.memory["weights"] == pytest.approx(4 * count * slack)
    assert full.memory["optimizer state"] == pytest.approx(8 * count * slack) and full.memory["float32 masters"] == 0
    assert full.facts["checkpoint_mb"] == pytest.approx(12 * count / 1e6)
    assert parts["lora"].peak_mb < full.peak_mb


def test_bfloat16_has_masters(inputs, make_ctx) -> None:
    fit = Fit(method="full", length={"steps": 1}, dtype="bfloat16")
    planned = step_plans.plan_fit(fit, inputs, make_ctx("plan", inputs), HERE)
    count, slack = planned.facts["trained parameters"], step_plans.SLACK / 1e6
    assert planned.memory["float32 masters"] == pytest.approx(4 * count * slack)
    assert planned.memory["weights"] == pytest.approx(2 * count * slack) and planned.memory["bfloat16 kernels"] > 0


def test_a_fit_keeps_its_plan_beside_what_happened(inputs, make_ctx) -> None:
    record = Fit(length={"steps": 1}).run(inputs, make_ctx("fit", inputs)).meta["fit"]
    assert record["planned"]["peak_mb"] > record["planned"]["floor_mb"] > 0 and record["planned"]["seconds"] > 0
    assert record["peak_mb"] > 0


def test_gpus_are_named() -> None:
    assert [g.memory_gb for g in hardware.named_gpus("h100, L4")] == [80, 24]
    with pytest.raises(UserError, match="no GPU of that name"):
        hardware.named_gpus("h1000000")


def test_rates_are_kept_with_date_and_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    first = hardware.rates(1)
    assert first.date and first.processor and min(first.float32, first.bandwidth, first.call_seconds, first.disk) > 0
    monkeypatch.setattr(hardware, "measure", lambda threads: pytest.fail("measured again"))
    assert hardware.rates(1) == first


def test_changes_are_planned_until_they_fit(tmp_path: Path, engine) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "Which tree is number {i} by the {w}?", "answer": "{w} {i}"}}\n' for i, w in
                            enumerate("oak elm ash fir yew fig bay box nut gum tea may".split())))
    from luthier.pipelines.planning import recipe_for

    recipe: Recipe = recipe_for([str(rows)]).edit(**{"base.model": "pico", "tuned.method": "full"})
    engine.decide({})
    whole = planning.plan(recipe, engine)
    changes = planning.cheaper(recipe, engine, 0.0)
    assert changes and not any(c["fits"] for c in changes)
    assert [c["peak_mb"] for c in changes] == sorted((c["peak_mb"] for c in changes), reverse=True)
    # The process itself, which is counted in, may have grown a little between the two.
    assert [c["edit"] for c in planning.cheaper(recipe, engine, 1e9)[:1]] in ([], [changes[0]["edit"]]) and whole.fits
    predicted = planning.on_gpu(whole, hardware.GPUS["l4"])
    assert predicted.prediction and predicted.available_mb == 24_000
