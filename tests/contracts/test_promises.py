"""What the contexts and the loop promise to techniques that do not exist yet, proved by dummies."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.core import index
from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import LuthierError, UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.files import read_lines
from luthier.core.kinds import Prediction
from luthier.core.recipe import Recipe
from luthier.core.rng import Rng
from luthier.core.run import Run
from luthier.core.step import Ctx, FitCtx
from luthier.engine.checkpoints import read_checkpoint
from luthier.engine.executor import execute
from luthier.engine.forward import Forward
from luthier.engine.loop import rows_at
from luthier.engine.models import Model, add_tuned, load_base
from luthier.engine.rendering import Render
from tests.contracts import dummies
from tests.contracts.workbench import (
    encode,
    examples,
    make_batch,
    make_loop,
    short_fit,
    training_data,
    tuned_logits,
)

ROOT = Path(__file__).resolve().parents[2]


def fitted(make_ctx, base, architecture="decoder", name="fit", **changed):
    """A short training: (artifact, its losses)."""
    inputs = {"base": base, "examples": training_data(make_ctx(f"{name}/examples"))}
    artifact = short_fit(architecture, **changed).run(inputs, make_ctx(f"{name}/fit", inputs))
    return artifact, read_lines(artifact.folder / "curve.jsonl")


# --- a kill changes nothing ----------------------------------------------------------------------------------------

def test_a_hook_with_state_goes_on_after_kill_9(tmp_path, pico):
    import shutil

    shutil.copytree(pico.folder, tmp_path / "base")
    write_examples(tmp_path / "examples", {"train": examples(8)})
    chance = random.Random(7)
    kills = [f"{chance.randint(1, 3)}:{chance.randint(0, 25)}" for _ in range(3)]
    done = subprocess.run([sys.executable, "-m", "tests.contracts.killed", str(tmp_path), *kills], cwd=ROOT, text=True,
                          capture_output=True, timeout=170, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["signals"] == [9, 9, 9, 0]
    assert found["left"]["killed"] == found["left"]["whole"], "weights and curve of the uninterrupted run"
    assert 12 == found["steps"]["whole"] <= found["steps"]["killed"] <= 15, "at most one step is done again a kill"


def test_the_state_of_the_dummy_matters(make_ctx, pico):
    """A mutant: the same hook without its state leaves other weights, so the test above can fail."""
    whole, _ = fitted(make_ctx, pico, name="whole", regularizers=("dummy-memory",))
    inputs = {"base": pico, "examples": training_data(make_ctx("again/examples"))}
    with pytest.raises(dummies.Killed):
        short_fit("decoder", regularizers=("dummy-memory", "dummy-stop"), checkpoint_seconds=0).run(
            inputs, make_ctx("again/fit", inputs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dummies.MemoryHook, "load_state_dict", lambda self, state: None)
        forgetful = short_fit("decoder", regularizers=("dummy-memory", "dummy-stop"), checkpoint_seconds=0).run(
            inputs, make_ctx("again/fit", inputs))
    assert forgetful.identity != whole.identity


# --- two models in one objective -----------------------------------------------------------------------------------

def test_a_frozen_reference_gets_no_gradient_and_starts_at_no_distance(make_ctx, pico):
    task = {"data": "examples.train", "objective": "dummy-anchored"}
    artifact, curve = fitted(make_ctx, pico, tasks=(task,), regularizers=("dummy-spy",))
    assert curve[0]["parts"]["kl"] == 0
    assert all(r["parts"]["kl"] >= 0 for r in curve) and curve[-1]["parts"]["kl"] > 1e-4
    assert curve[-1]["parts"]["nll"] < curve[0]["parts"]["nll"]
    reference = dummies.SPIED["roles"]["reference"].module
    assert all(p.grad is None and not p.requires_grad for n, p in reference.named_parameters() if "lora_" not in n)
    assert artifact.kind == "adapter"


def test_the_anchor_holds(make_ctx, pico):
    distances = []
    for weight in (0.0, 20.0):
        task = {"data": "examples.train", "objective": f"dummy-anchored:weight={weight}"}
        artifact, _ = fitted(make_ctx, pico, name=f"w{weight}", tasks=(task,), length={"steps": 20})
        tuned, base = (tuned_logits(m).log_softmax(-1) for m in (add_tuned(load_base(pico), artifact), load_base(pico)))
        distances.append(float((base.exp() * (base - tuned)).sum(-1).mean()))
    assert distances[1] < 0.8 * distances[0], distances


def test_a_role_that_no_objective_reads_is_refused(make_ctx, pico):
    with pytest.raises(UserError, match="No objective reads the role 'teacher'"):
        fitted(make_ctx, pico, roles={"teacher": "base"})


def test_a_metric_asks_a_second_model(make_ctx, engine, pico):
    asked = examples(3)
    ctx = make_ctx("metric", roles={"judge": engine.load(pico)})
    said = [Prediction(e.id, text=e.answer) for e in asked]
    metric = build("metric", "dummy-judged")
    records = metric.score(asked, said, ctx)
    assert [r["id"] for r in records] == ["q0", "q1", "q2"] and all(r["value"] < 0 for r in records)
    assert metric.reduce(records) == pytest.approx(np.mean([r["value"] for r in records]))
    assert engine.evaluate(asked, said, [metric], ctx)["dummy-judged"] == records


# --- several tasks, several modalities -----------------------------------------------------------------------------

def test_two_tasks_with_two_heads_learn_and_are_saved(make_ctx, engine, pico_encoder):
    made = {"colour": [Example(f"c{i}", (Turn("user", (Part(f"{w} paint {i}"),)),), label=w)
                       for i, w in enumerate(["red", "blue"] * 4)],
            "size": [Example(f"s{i}", (Turn("user", (Part(f"a {w} box {i}"),)),), label=w)
                     for i, w in enumerate(["small", "large", "huge"] * 3)]}
    inputs = {"base": pico_encoder, "examples": write_examples(make_ctx("examples").folder, made)}
    tasks = tuple({"data": f"examples.{n}", "objective": "classify", "head": "linear:dropout=0"} for n in made)
    fit = short_fit("encoder", tasks=tasks, method="full", length={"steps": 25}, learning_rate=3e-3)
    ctx = make_ctx("fit", inputs)
    artifact = fit.run(inputs, ctx)
    assert {r.verdict for r in fit.receipts(inputs, artifact, ctx)} <= {"agrees", "not applicable"}
    model = add_tuned(load_base(pico_encoder), artifact)
    assert model.labels == {"examples.colour": ["blue", "red"], "examples.size": ["huge", "large", "small"]}
    run, render = Forward({"policy": model}), Render(model.tokenizer, model.architecture, 64)
    for task, rows in ((f"examples.{n}", r) for n, r in made.items()):
        run.task = task
        batch = make_batch([{"input": render.text(e)} for e in rows], model)
        said = run.head(run("policy", batch["input"]).pooled()).argmax(-1)
        assert [model.labels[task][i] for i in said] == [e.label for e in rows]


def test_a_picture_goes_from_the_example_to_the_model(make_ctx, pico_encoder, engine):
    def picture(value: float) -> list[list[float]]:
        return [[value, value], [0.5, value]]

    rows = [Example(f"i{i}", (Turn("user", (Part(picture((-1.0) ** i), "image"), Part("what is it?"))),),
                    label=("dark", "light")[i % 2]) for i in range(6)]
    tokenizer = engine.tokenizer(pico_encoder)
    torch.manual_seed(0)
    model = Model(dummies.Seeing(len(tokenizer), 4), tokenizer, "encoder", "seeing", "seeing", 256, pico_encoder)
    model.heads["task"] = torch.nn.Linear(16, 2)
    objective = build("objective", "dummy-image")
    features = encode(objective, model, rows)
    batch = make_batch(features, model)
    assert batch["input"].tensors["pixel_values"].shape == (6, 2, 2)
    loop = make_loop(model, objective, features, make_ctx("loop"), steps=12, batch_rows=6, micro_rows=2, rate=3e-2)
    loop.train()
    assert loop.curve[-1]["loss"] < loop.curve[0]["loss"] / 2, "the text is the same: only the picture can tell"


def test_the_loss_of_an_encoder_decoder_is_its_own(pico_encoder_decoder):
    model = load_base(pico_encoder_decoder)
    features = encode(build("objective", "supervised"), model, examples(5))
    batch = make_batch(features, model)["input"]
    labels = batch.decoder_ids[:, 1:].masked_fill(~batch.targets[:, 1:], -100)
    with torch.no_grad():
        theirs = model.module(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
        ours = Forward({"policy": model})("policy", batch).nll()
    assert len(ours) == int((labels != -100).sum())
    assert float(ours.mean()) == pytest.approx(float(theirs), abs=1e-5)


# --- rounds, ranks, versions ---------------------------------------------------------------------------------------

def test_a_second_round_goes_on_where_it_failed(tmp_path, engine):
    ledger = tmp_path / "calls"

    def recipe(fail_at: int) -> Recipe:
        round_ = {"grow": {"use": "dummy-grow", "inputs": {"rows": "rows"}, "ledger": str(ledger), "fail_at": fail_at}}
        return Recipe({"steps": {
            "rows": {"use": "dummy-rows", "count": 2},
            "repeat": {"use": "repeat", "inputs": {"rows": "rows"}, "steps": round_, "carry": {"rows": "grow"},
                       "result": "grow", "times": 2}}})

    failing = recipe(2)
    with pytest.raises(dummies.Killed):
        execute(failing, tmp_path / "run", engine)
    work = tmp_path / "run" / "steps" / ".repeat.work" / "rounds"
    first = work / "0" / "grow" / "step.json"
    kept = first.stat().st_mtime_ns
    assert (work / "1" / ".grow.work" / "failure.json").exists()
    run = execute(failing, tmp_path / "run", engine)
    assert len(ledger.read_text().splitlines()) == 3, "round 1 once, round 2 twice"
    assert (tmp_path / "run/steps/repeat/rounds/0/grow/step.json").stat().st_mtime_ns == kept
    left = run.step("repeat")
    assert left.meta["rounds"] == 2 and len(list(left.examples())) == 4
    ids = [e.id for e in left.examples()]
    ledger.unlink()
    whole = execute(recipe(0), tmp_path / "whole", engine).step("repeat")
    assert [e.id for e in whole.examples()] == ids, "an uninterrupted repeat draws the same numbers"


def test_a_repeat_is_as_old_as_the_steps_of_its_rounds(tmp_path, monkeypatch):
    from luthier.core.component import Info

    grow = {"use": "dummy-grow", "inputs": {"rows": "rows"}, "ledger": str(tmp_path / "calls")}
    repeat = build("step", {"use": "repeat", "steps": {"grow": grow}, "carry": {"rows": "grow"}, "result": "grow"})
    before = repeat.content()
    monkeypatch.setattr(dummies.DummyGrow, "info", Info("step", "dummy-grow", 2, ()))
    assert repeat.content() != before
    wrong = build("step", {**repeat.to_dict(), "steps": {"grow": {**grow, "ledgre": "x"}}})
    with pytest.raises(UserError, match="no 'ledgre'. Did you mean 'ledger'"):
        wrong.check()


@pytest.mark.parametrize("rows, batch", [(10, 4), (7, 7), (5, 8), (9, 3)])
def test_two_ranks_share_what_one_rank_reads(rows, batch):
    rng = Rng(0)
    seen: list[int] = []
    for step in range(3 * -(-rows // batch)):
        whole = rows_at(rng, step, rows, batch)
        shares = [rows_at(rng, step, rows, batch, rank, 2) for rank in (0, 1)]
        assert sorted(np.concatenate(shares)) == sorted(whole)
        assert abs(len(shares[0]) - len(shares[1])) <= 1
        seen += list(whole)
    assert sorted(seen) == sorted(list(range(rows)) * 3), "each row once an epoch"
    assert list(rows_at(rng, 1, rows, batch)) == list(rows_at(Rng(0), 1, rows, batch))


def row_of(version: int, **defaults) -> dict:
    return {"kind": "method", "name": "made-up", "version": version,
            "schema": {"properties": {n: {"default": v} for n, v in defaults.items()}}}


def test_a_default_that_changes_alone_is_found():
    old = [row_of(1, rank=8, alpha=16)]
    assert index.changed_defaults(old, [row_of(1, rank=8, alpha=16, fresh=1)]) == []
    assert index.changed_defaults(old, [row_of(2, rank=4, alpha=16)]) == []
    assert index.changed_defaults(old, [row_of(1, rank=4, alpha=16)]) == ["method made-up: rank 8 -> 4 at version 1"]
    assert index.changed_defaults([], old) == []


def test_no_default_changed_since_the_last_commit_without_a_new_version():
    asked = ["git", "show", "HEAD:src/luthier/components.jsonl"]
    shown = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    if shown.returncode:
        pytest.skip("no git history here: the last commit's index can't be read")
    assert index.changed_defaults(map(json.loads, shown.stdout.splitlines()), index.describe()) == []


# --- the two contexts ----------------------------------------------------------------------------------------------

def test_the_names_of_the_contexts_are_closed():
    names = ["rng", "folder", "journal", "engine", "stream", "roles", "log", "progress"]
    assert [f.name for f in dataclasses.fields(Ctx)] == names
    assert [f.name for f in dataclasses.fields(FitCtx)] == [
        *names, "clock", "snapshot", "closure", "perturbed", "rebuild_optimizer", "rows", "inputs"]
    public = {n for n in dir(FitCtx) if not n.startswith("_")}
    assert public <= {f.name for f in dataclasses.fields(FitCtx)}, "no methods besides the fields"


@pytest.fixture
def probed(make_ctx, pico):
    """Run a function inside a real training, after its second update; returns the artifact."""
    def run(call, name="fit", **changed):
        called = []

        def once(hook, ctx):
            called.append(call(hook, ctx))

        dummies.DummyProbe.call = staticmethod(once)
        regularizers = ("dummy-memory", "dummy-probe")
        artifact, curve = fitted(make_ctx, pico, name=name, **{"regularizers": regularizers, **changed})
        assert len(called) == 1
        return artifact, curve

    return run


def trained(hook) -> list[torch.Tensor]:
    return [p for p in hook.model.module.parameters() if p.requires_grad]


def test_a_snapshot_restores_every_bit_as_often_as_asked(probed):
    def call(hook, ctx):
        before = [p.detach().clone() for p in trained(hook)]
        memory = ctx.snapshot.__self__.loop.hooks[1]
        state = {k: v.clone() if hasattr(v, "clone") else v for k, v in memory.state_dict().items()}
        snapshot = ctx.snapshot()
        loop = ctx.closure.__self__
        for _ in range(2):
            for _ in range(2):
                with torch.no_grad():
                    for p in trained(hook):
                        p.grad = torch.ones_like(p)
                loop.torch_optimizer.step()
                loop.torch_optimizer.zero_grad(set_to_none=True)
                memory.count, ctx.clock.step = 77, 77
                memory.memory.add_(1)
            assert not torch.equal(trained(hook)[0], before[0])
            snapshot.restore()
            assert all(torch.equal(a, b) for a, b in zip(trained(hook), before, strict=True))
            assert ctx.clock.step != 77 and memory.count == state["count"]
            assert torch.equal(memory.memory, state["memory"])

    untouched, _ = probed(lambda hook, ctx: None, "untouched")
    assert probed(call, "restored")[0].identity == untouched.identity


def test_perturbed_weights_are_put_back_exactly(probed):
    def call(hook, ctx):
        before = [p.detach().clone() for p in trained(hook)]
        delta = [torch.full_like(p, 0.1) for p in trained(hook)]
        with ctx.perturbed(delta):
            assert torch.allclose(trained(hook)[0], before[0] + 0.1)
        with pytest.raises(dummies.Killed), ctx.perturbed(delta):
            raise dummies.Killed
        assert all(torch.equal(a, b) for a, b in zip(trained(hook), before, strict=True))

    untouched, _ = probed(lambda hook, ctx: None, "untouched")
    assert probed(call, "perturbed")[0].identity == untouched.identity


def gradients(hook, ctx, rng: str) -> list[torch.Tensor]:
    """Gradients of the current batch by the closure, and none left behind."""
    for p in trained(hook):
        p.grad = None
    ctx.closure([hook.batch], rng=rng)
    found = [p.grad.clone() for p in trained(hook)]
    for p in trained(hook):
        p.grad = None
    return found


def test_a_closure_replays_the_same_gradient_under_the_same_name(probed):
    def call(hook, ctx):
        first, again, other = (gradients(hook, ctx, name) for name in ("a", "a", "b"))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True)), "dropout draws anew"

    probed(call, method="lora:dropout=0.3", optimizer="adamw")


def test_rebuilding_keeps_the_state_of_the_weights_that_stay(probed):
    def call(hook, ctx):
        loop = ctx.closure.__self__
        stay = [p for n, p in hook.model.module.named_parameters() if p.requires_grad and "layers.1" in n]
        kept = {id(p): {k: torch.as_tensor(v).clone() for k, v in loop.torch_optimizer.state[p].items()} for p in stay}
        for name, parameter in hook.model.module.named_parameters():
            parameter.requires_grad_("layers.1" in name and parameter.requires_grad)
        ctx.rebuild_optimizer(True)
        now = [p for g in loop.torch_optimizer.param_groups for p in g["params"]]
        assert {id(p) for p in now} == {id(p) for p in stay} != set()
        for p in now:
            state = loop.torch_optimizer.state[p]
            assert all(torch.equal(torch.as_tensor(v), kept[id(p)][k]) for k, v in state.items())
        ctx.rebuild_optimizer(False)
        assert not loop.torch_optimizer.state

    probed(call)


def test_a_training_that_changed_its_weights_half_way_goes_on_exactly(make_ctx, pico):
    whole, _ = fitted(make_ctx, pico, name="whole", method="dummy-thaw")
    inputs = {"base": pico, "examples": training_data(make_ctx("again/examples"))}
    fit = short_fit("decoder", method="dummy-thaw", regularizers=("dummy-stop:at=4",), checkpoint_seconds=0)
    with pytest.raises(dummies.Killed):
        fit.run(inputs, make_ctx("again/fit", inputs))
    ctx = make_ctx("again/fit", inputs)
    (ctx.folder / "stopped-once").rename(ctx.folder.parent / "stopped")
    fit = short_fit("decoder", method="dummy-thaw", regularizers=("dummy-stop:at=99",), checkpoint_seconds=0)
    assert fit.run(inputs, ctx).identity == whole.identity


# --- hooks on batches and losses -----------------------------------------------------------------------------------

def test_a_snapshot_from_before_a_change_of_weights_is_restored_too(probed):
    def call(hook, ctx):
        loop = ctx.closure.__self__
        before = {n: p.detach().clone() for n, p in hook.model.module.named_parameters()}
        flags = {n: p.requires_grad for n, p in hook.model.module.named_parameters()}
        snapshot = ctx.snapshot()
        for name, parameter in hook.model.module.named_parameters():
            parameter.requires_grad_(name.endswith("norm.weight"))
        ctx.rebuild_optimizer(True)
        with torch.no_grad():
            for parameter in hook.model.module.parameters():
                parameter.add_(float(parameter.requires_grad))
        snapshot.restore()
        assert {n: p.requires_grad for n, p in hook.model.module.named_parameters()} == flags
        assert all(torch.equal(p, before[n]) for n, p in hook.model.module.named_parameters())
        assert not loop.state.left

    untouched, _ = probed(lambda hook, ctx: None, "untouched")
    assert probed(call, "restored")[0].identity == untouched.identity


def test_a_hook_may_give_several_batches(make_ctx, pico):
    _, curve = fitted(make_ctx, pico, name="once")
    _, curves = fitted(make_ctx, pico, name="twice", regularizers=("dummy-twice",))
    assert [r["loss"] for r in curves] == pytest.approx([r["loss"] for r in curve], abs=1e-4), "the mean is the same"
    assert curves[-1]["tokens"] == 2 * curve[-1]["tokens"]


def test_a_hook_may_give_another_batch(make_ctx, pico):
    plain, _ = fitted(make_ctx, pico, name="plain")
    other, _ = fitted(make_ctx, pico, name="other", regularizers=("dummy-replace",))
    assert other.identity == plain.identity


def test_a_loss_that_is_no_number_stops_with_the_rows_and_keeps_the_checkpoint(make_ctx, pico):
    with pytest.raises(LuthierError, match=r"loss of step 3 is nan: rows .*q\d.*last checkpoint is kept"):
        fitted(make_ctx, pico, regularizers=("dummy-poison",), checkpoint_seconds=0)
    found = list(make_ctx("fit/fit").folder.glob("checkpoints/step-*"))
    assert [f.name for f in found] == ["step-0000002"]
    assert read_checkpoint(found[0])["clock"]["step"] == 2


# --- a delta -------------------------------------------------------------------------------------------------------

def test_a_delta_holds_what_moved_and_nothing_else(make_ctx, pico_encoder):
    from safetensors.torch import load_file

    artifact, _ = fitted(make_ctx, pico_encoder, "encoder", method="bitfit")
    assert artifact.kind == "delta"
    base, tuned = load_base(pico_encoder), add_tuned(load_base(pico_encoder), artifact)
    held = load_file(artifact.folder / "delta.safetensors")
    own = dict(base.module.named_parameters())
    assert held and all(n.endswith("bias") for n in held)
    for name, parameter in tuned.module.named_parameters():
        assert torch.equal(parameter, held[name] if name in held else own[name])
    assert any(not torch.equal(held[n], own[n]) for n in held)


def test_a_delta_of_another_base_is_refused(make_ctx, pico_encoder, pico_encoder_decoder):
    artifact, _ = fitted(make_ctx, pico_encoder, "encoder", method="bitfit")
    with pytest.raises(UserError, match="was trained on pico-encoder"):
        add_tuned(load_base(pico_encoder_decoder), artifact)


def test_a_run_is_opened_by_its_folder(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        Run.open(tmp_path)
