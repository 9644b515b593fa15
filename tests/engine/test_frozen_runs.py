"""Trainings above kept states that are stopped, killed or changed on the way, and what the step leaves and says."""

from __future__ import annotations

import copy
import os
import signal
import time

import pytest
import torch

from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.engine import kept_states
from luthier.engine.activation_cache import ActivationCache
from luthier.engine.layers import layer_stacks
from tests.contracts import dummies
from tests.contracts.workbench import short_fit, training_data
from tests.engine.frozen_cases import fresh_from, loop_of, losses, trained


@pytest.fixture
def fresh(bases):
    return fresh_from(bases)


@pytest.mark.parametrize("at", [0, 3, 7])
def test_a_filling_that_was_stopped_goes_on_with_the_same_numbers(at, fresh, make_ctx, monkeypatch):
    monkeypatch.setattr(kept_states, "GROUP_ROWS", 3)
    monkeypatch.setattr("luthier.engine.activation_cache.FLUSH_BYTES", 1)
    whole = loop_of(fresh("llama"), make_ctx("whole/fit"), "on")
    whole.train()
    own, written = ActivationCache.write, []

    def write(self, row, states):
        if len(written) == at:
            raise dummies.Killed
        written.append(row)
        own(self, row, states)

    with monkeypatch.context() as patch:
        patch.setattr(ActivationCache, "write", write)
        with pytest.raises(dummies.Killed):
            loop_of(fresh("llama"), make_ctx("again/fit"), "on").run.frozen.ready()
    again = loop_of(fresh("llama"), make_ctx("again/fit"), "on")
    with monkeypatch.context() as patch:
        rewritten = []
        patch.setattr(ActivationCache, "write", lambda self, row, s: rewritten.append(row) or own(self, row, s))
        again.train()
    assert sorted(written + rewritten) == list(range(10)), "what was safe is not computed again"
    assert losses(again) == losses(whole)
    assert all(torch.equal(a, b) for a, b in zip(trained(again.model).values(), trained(whole.model).values(), strict=True))


@pytest.mark.parametrize("after", [1, 4])
def test_a_training_that_was_killed_goes_on_bit_for_bit(after, make_ctx, pico):
    """A child process trains until it is killed; another training in the same folder ends as an undisturbed one."""
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}

    def run(name, report=""):
        fit = short_fit("decoder", method="layer-freezing", cache_frozen="on", batch_rows=3, checkpoint_seconds=0,
                        regularizers=({"use": "dummy-memory", "report": report, "pause": 0.02},))
        return fit.run(inputs, make_ctx(f"{name}/fit", inputs))

    whole = run("whole")
    steps = make_ctx("report").folder / "steps"
    child = os.fork()
    if child == 0:
        try:
            run("killed", str(steps))
        finally:
            os._exit(0)
    while not steps.exists() or len(steps.read_text().splitlines()) < after:
        assert os.waitpid(child, os.WNOHANG)[0] == 0, "it ended before it could be killed"
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (make_ctx("killed/fit").folder / "activations" / "header.json").exists()
    assert run("killed").identity == whole.identity


def test_other_frozen_weights_have_other_states(fresh, make_ctx):
    loop = loop_of(fresh("llama"), make_ctx("fit"), "on")
    loop.run.frozen.ready()
    loop.run.frozen.close(remove=False)
    model = fresh("llama")
    with torch.no_grad():
        next(layer_stacks(model)[0].layers[0].parameters()).mul_(1.5)
    other = loop_of(model, make_ctx("fit"), "on")
    own = copy.copy(other.run.frozen)
    own.ready()
    assert own._kept.file.missing(range(10)) == []
    (batch, *_) = other.batch(other.tasks[0], 0)
    with torch.no_grad():
        kept = other.run("policy", batch["input"]).nll()
        other.run.frozen = None
        whole = other.run("policy", batch["input"]).nll()
    assert (kept - whole).abs().max() <= 1e-5


def test_a_change_of_what_is_trained_is_followed(make_ctx, pico):
    found = {}
    for mode in ("auto", "off"):
        inputs = {"base": pico, "examples": training_data(make_ctx(f"{mode}/examples"))}
        fit = short_fit("decoder", method="dummy-thaw", cache_frozen=mode, length={"steps": 8})
        ctx = make_ctx(f"{mode}/fit", inputs)
        artifact = fit.run(inputs, ctx)
        found[mode] = [r["loss"] for r in read_lines(artifact.folder / "curve.jsonl")]
        decision = artifact.meta["fit"]["decisions"]["cache_frozen"]
        assert decision["use"] == (mode == "auto") and decision["below"] == 1
        assert not (ctx.folder / "activations").exists()
    assert ctx.journal.values["frozen layers/0"]["why"].startswith("everything is trained")
    assert found["auto"] == pytest.approx(found["off"], abs=1e-6)


# --- through the step ------------------------------------------------------------------------------------------------

def test_the_step_proves_records_and_cleans_up(make_ctx, pico):
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    fit = short_fit("decoder", method="layer-freezing")
    ctx = make_ctx("fit", inputs)
    artifact = fit.run(inputs, ctx)
    (proof,) = [r for r in fit.receipts(inputs, artifact, ctx) if r.name == "fit/cached = computed"]
    assert proof.verdict == "agrees" and proof.right <= proof.tolerance == 1e-6
    decisions = artifact.meta["fit"]["decisions"]
    assert decisions["cache_frozen"]["use"] and decisions["dropout_below"] == "off"
    assert not (ctx.folder / "activations").exists()


def test_the_step_says_when_nothing_is_kept(make_ctx, pico):
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    ctx = make_ctx("fit", inputs)
    fit = short_fit("decoder", method="lora")
    artifact = fit.run(inputs, ctx)
    (proof,) = [r for r in fit.receipts(inputs, artifact, ctx) if r.name == "fit/cached = computed"]
    assert proof.verdict == "not applicable" and "down to the first layer" in proof.detail
    with pytest.raises(UserError, match="cache_frozen: on, but everything is trained"):
        short_fit("decoder", method="lora", cache_frozen=True).run(inputs, make_ctx("on/fit", inputs))
