"""Booster against plain alignment, a quadratic, and a model of one weight. All rows are harmless placeholders."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.core.files import read_lines
from luthier.core.kinds import Objective
from luthier.engine.loop import Task
from luthier.engine.models import Model, load_base
from tests.contracts.workbench import examples, make_loop, short_fit
from tests.recorded import far, recorded

START, CURVATURE = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]])


class Bowls(Objective, name="bowls"):
    """f = |w - 1|² / 2 for rows of the alignment, h = w' H w / 2 for those against it: the row says which."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"bowl": "coupled"}
    architectures: ClassVar[tuple[Any, ...]] = ("encoder",)
    curvature: ClassVar[torch.Tensor]

    def encode(self, example, render, rng):
        raise NotImplementedError

    def count(self, batch):
        return {"bowl": len(batch["against"])}

    def loss(self, run, batch):
        w = run.models["policy"].module.w
        aligned, against = 0.5 * (w - 1).square().sum(), 0.5 * w @ (Bowls.curvature @ w)
        return {"bowl": torch.where(batch["against"] > 0, against, aligned).sum()}


class Weights(nn.Module):
    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start.clone())
        self.config = SimpleNamespace(hidden_size=4, vocab_size=8)


def bowls(base, make_ctx, spec: str, start=START, curvature=CURVATURE, steps: int = 1, rate: float = 1e-2):
    Bowls.curvature = curvature
    model = Model(Weights(start), load_base(base).tokenizer, "encoder", "bowls", "bowls", 8, base)
    loop = make_loop(model, Bowls(), [{"against": 0.0}] * 4, make_ctx(f"{spec}/loop"), steps=steps, rate=rate, clip=0)
    loop.further = {"violations": Task("task", Bowls(), [{"against": 1.0}] * 4, [f"v{i}" for i in range(4)])}
    loop.hooks = [build("regularizer", spec).start(model, loop.ctx)]
    return loop


# --- the rows of a model --------------------------------------------------------------------------------------------

def rows(count: int = 6, name: str = "pet"):
    return [question(f"{name}{i}", f"Which {name} has Ana {i}?", f"a {name} called Klam{i}") for i in range(count)]


def fitted(make_ctx, base, name: str, told=lambda text: None, further=None, **changed):
    data = {"train": examples(8), "dev": examples(3), **({"violations": rows()} if further is None else further)}
    inputs = {"base": base, "examples": write_examples(make_ctx(f"{name}/examples").folder, data)}
    fit = short_fit("decoder", **{"length": {"steps": 5}, "learning_rate": 3e-3, **changed})
    ctx = make_ctx(f"{name}/fit", inputs)
    ctx.log = told
    artifact = fit.run(inputs, ctx)
    return artifact, read_lines(artifact.folder / "curve.jsonl")


@pytest.mark.oracle(seed=162, clause=1, against="plain alignment")
def test_lam_zero_is_plain_alignment(pico, make_ctx):
    plain, curve = fitted(make_ctx, pico, "plain", method="lora:dropout=0.1", further={})
    off, other = fitted(make_ctx, pico, "off", method="lora:dropout=0.1", further={}, regularizers=("booster:lam=0",))
    assert off.identity == plain.identity and [r["loss"] for r in other] == [r["loss"] for r in curve]
    small, near = fitted(make_ctx, pico, "small", method="lora:dropout=0.1", regularizers=("booster:lam=1e-12",))
    assert near[0]["loss"] == curve[0]["loss"], "passes over the violating rows draw nothing from the alignment's dropout"
    assert near[-1]["loss"] == pytest.approx(curve[-1]["loss"], abs=1e-4) and small.identity
    assert near[-1]["tokens"] > 2 * curve[-1]["tokens"], "and are charged"


@pytest.mark.oracle(seed=162, clause=2, against="closed form: alpha H (H w) / |H w|")
@pytest.mark.oracle(seed=162, clause=3, against="the weights before")
def test_the_gradient_of_a_quadratic_is_its_closed_form(pico_encoder, make_ctx):
    loop = bowls(pico_encoder, make_ctx, "booster:lam=3,alpha=0.2,batch=4")
    weight, seen = loop.model.module.w, []
    spied = loop.torch_optimizer.step
    loop.torch_optimizer.step = lambda *given: (seen.append((weight.grad.clone(), weight.detach().clone())), spied(*given))
    loop.train()
    gradient, before = seen[0]
    g = CURVATURE @ START
    wanted = (START - 1) + 3 * 0.2 * CURVATURE @ g / g.norm()
    assert gradient.tolist() == pytest.approx(wanted.tolist(), rel=1e-5)
    assert torch.equal(before, START), "put back by their bits"
    again = START - 0.2 * g / g.norm()
    row = loop.curve[0]
    assert row["h"] == pytest.approx(float(0.5 * START @ g)) and row["h_ahead"] == pytest.approx(
        float(0.5 * again @ CURVATURE @ again))
    assert row["bracket"] == pytest.approx(row["h"] - row["h_ahead"])


@pytest.mark.oracle(seed=162, clause=2, against="the code of Booster's authors")
@pytest.mark.parametrize("record", recorded("booster")["records"], ids=lambda r: f"lam={r['lam']},alpha={r['alpha']}")
def test_the_gradient_is_that_of_the_authors_code(record, pico_encoder, make_ctx):
    """It adds the step ahead back to the weights; ours have their own bits again."""
    start, curvature = (torch.tensor(recorded("booster")[name]) for name in ("start", "curvature"))
    loop = bowls(pico_encoder, make_ctx, f"booster:lam={record['lam']},alpha={record['alpha']},batch=4", start, curvature)
    weight, seen = loop.model.module.w, []
    loop.torch_optimizer.step = lambda *given: seen.append((weight.grad.clone(), weight.detach().clone()))
    loop.train()
    gradient, before = seen[0]
    assert far(gradient, record["gradient"]) <= 2e-6
    assert far(before, record["weights"]) <= 1e-6 and torch.equal(before, start)


@pytest.mark.oracle(seed=162, clause=3, against="the weights before")
def test_weights_that_adding_back_would_spoil_are_put_back(pico_encoder, make_ctx):
    start = torch.tensor([1e-4, 123.456, -7e-6])
    loop = bowls(pico_encoder, make_ctx, "booster", start=start)
    step = -0.1 * (g := CURVATURE @ start) / g.norm()
    assert not torch.equal((start + step) - step, start), "adding back is not exact here"
    loop.accumulate(loop.batch(loop.tasks[0], 0), loop.tasks[0], loop.counts(loop.batch(loop.tasks[0], 0), loop.tasks[0]))
    loop.hooks[0].on_gradients()
    assert torch.equal(loop.model.module.w.detach(), start)


@pytest.mark.oracle(seed=162, clause=4, against="closed form: w = 1 - lam alpha")
@pytest.mark.oracle(seed=162, clause=5, against="closed form: h below the other's")
def test_one_weight_stops_where_the_paper_s_gradient_is_zero(pico_encoder, make_ctx):
    one, flat = torch.tensor([1.0]), torch.tensor([[1.0]])
    loop = bowls(pico_encoder, make_ctx, "booster:lam=5,alpha=0.1,batch=4", start=one, curvature=flat, steps=400, rate=0.01)
    loop.train()
    w = float(loop.model.module.w.detach())
    assert w == pytest.approx(0.5, abs=2e-3)
    drop = loop.curve[-1]["bracket"]
    assert drop == pytest.approx(0.045, abs=1e-3), "0.095 at w = 1, where alignment alone stays"
    assert loop.curve[0]["bracket"] == pytest.approx(0.095, abs=1e-5)
    assert loop.curve[-1]["h_ahead"] == pytest.approx(0.08, abs=2e-3) and loop.curve[0]["h_ahead"] == pytest.approx(0.405)
    told = []
    loop.ctx.log = told.append
    loop.hooks[0].tell()
    assert "bracket fell from 0.095 to 0.045, but so did h, from 0.5 to 0.125" in told[0] and "refusals" in told[0]


def test_rows_without_a_gradient_are_counted_and_add_nothing(pico_encoder, make_ctx):
    plain = bowls(pico_encoder, make_ctx, "booster:lam=0", steps=2)
    plain.train()
    loop = bowls(pico_encoder, make_ctx, "booster", curvature=torch.zeros(3, 3), steps=2)
    loop.train()
    assert torch.equal(loop.model.module.w, plain.model.module.w)
    told = []
    loop.ctx.log = told.append
    loop.hooks[0].tell()
    assert told == ["booster: in 2 steps the violating pairs had no gradient; nothing was added there"]


def test_a_model_with_an_adapter_learns_and_says_what_it_defends(pico, make_ctx):
    _, curve = fitted(make_ctx, pico, "lora", regularizers=("booster:lam=1,alpha=0.05,batch=4",), length={"steps": 8})
    assert curve[-1]["loss"] < curve[0]["loss"] and all(r["h"] > 0 and r["bracket"] > 0 for r in curve)


@pytest.mark.parametrize("spec, said", [
    ("booster:lam=-1", "lam = -1: Input should be greater than or equal to 0"),
    ("booster:alpha=0", "alpha = 0: Input should be greater than 0"),
])
def test_a_setting_that_is_none_is_refused(spec, said):
    with pytest.raises(UserError, match=said):
        build("regularizer", spec)


def test_rows_that_are_not_there_or_are_tests_are_refused(pico, make_ctx):
    with pytest.raises(UserError, match="no subset 'violations'"):
        fitted(make_ctx, pico, "none", further={}, regularizers=("booster",))
    shared = {"violations": rows(), "policy": [question("p0", "which PET has  Ana 2?", "x")]}
    with pytest.raises(UserError, match="1 rows of examples.violations ask what a request of examples.policy asks: pet2"):
        fitted(make_ctx, pico, "shared", further=shared, regularizers=("booster:held_out=[examples.policy]",))
