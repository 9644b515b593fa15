"""Evaluation while training: when, what, early stopping, whose weights are kept; and all of it after a kill."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.engine.encoding import Encoded
from luthier.engine.models import add_tuned, load_base
from luthier.engine.steps.specs import ValidationSpec
from luthier.engine.validation import Validation
from tests.contracts import dummies
from tests.contracts.workbench import encode, examples, make_batch, make_loop, short_fit, tuned_logits

ROOT = Path(__file__).resolve().parents[2]


class Scripted(Validation):
    """Judges given numbers."""

    def feed(self, values: list[float]) -> list[tuple[int, bool]]:
        seen = []
        for step, value in enumerate(values, 1):
            self._loss = lambda value=value: value  # type: ignore[method-assign]
            self(step)
            seen.append((self.best_step, self.stopped))
        return seen


def scripted(**spec) -> Scripted:
    class Run:
        @staticmethod
        def take():
            return {}

    return Scripted(Run(), "task", None, Encoded(), 4, ValidationSpec(**spec))  # type: ignore[arg-type]


@pytest.mark.oracle(clause="patience and min_delta", against="hand case")
@pytest.mark.parametrize("spec, values, best, stopped", [
    ({"patience": 2}, [3, 2, 2.5, 2.1], [1, 2, 2, 2], [False, False, False, True]),
    ({"patience": 2}, [3, 2, 2.5, 1.9, 2, 2], [1, 2, 2, 4, 4, 4], [False] * 5 + [True]),
    ({"patience": 1, "min_delta": 0.5}, [3, 2.6], [1, 1], [False, True]),
    ({"patience": 1, "min_delta": 0.5}, [3, 2.5, 1.9], [1, 1, 3], [False, True, True]),
    ({"patience": 2, "better": "higher"}, [1, 2, 1.5, 1.9], [1, 2, 2, 2], [False, False, False, True]),
    ({"patience": 2}, [float("nan"), 2, float("nan"), float("nan")], [0, 2, 2, 2], [False, False, False, True]),
    ({}, [1, 2, 3, 4], [1, 1, 1, 1], [False] * 4),
])
def test_what_is_better_and_when_it_is_enough(spec, values, best, stopped):
    assert scripted(**spec).feed(values) == list(zip(best, stopped, strict=True))


def data(make_ctx, name: str):
    """Train and dev rows that have nothing to do with each other: the dev loss soon rises."""
    made = examples(10)
    return write_examples(make_ctx(name).folder, {"train": made[:6], "dev": made[6:]})


def trained(make_ctx, pico, name: str, **changed):
    inputs = {"base": pico, "examples": data(make_ctx, f"{name}/examples")}
    fit = short_fit("decoder", streams={"validation": "examples.dev"}, batch_rows=3, length={"steps": 24},
                    learning_rate=3e-2, **changed)
    ctx = make_ctx(f"{name}/fit", inputs)
    artifact = fit.run(inputs, ctx)
    assert all(r.verdict != "differs" for r in fit.receipts(inputs, artifact, ctx))
    return artifact, read_lines(artifact.folder / "curve.jsonl")


def test_the_loss_is_the_mean_over_learned_tokens(make_ctx, pico):
    model, objective = load_base(pico), build("objective", "supervised")
    features = encode(objective, model, examples(5))
    loop = make_loop(model, objective, features, make_ctx("x"))
    validation = Validation(loop.run, "task", objective, Encoded(features, [str(i) for i in range(5)]), 2, ValidationSpec())
    batch = make_batch(features, model)["input"]
    with torch.no_grad():
        wanted = model.module(input_ids=batch.ids, attention_mask=batch.mask,
                              labels=batch.ids.masked_fill(~batch.targets, -100)).loss
        assert validation(1)["dev_loss"] == pytest.approx(float(wanted), abs=1e-5)


def test_it_is_due_by_steps_by_epochs_and_at_the_end(make_ctx, pico):
    for spec, at in ({}, list(range(2, 25, 2))), ({"every_steps": 7}, [7, 14, 21, 24]), ({"every_steps": 8}, [8, 16, 24]):
        _, curve = trained(make_ctx, pico, f"due{spec}", validation=spec)
        assert [r["step"] for r in curve if "dev_loss" in r] == at


def test_looking_changes_nothing(make_ctx, pico):
    one, _ = trained(make_ctx, pico, "seldom", method="lora:dropout=0.2")
    two, _ = trained(make_ctx, pico, "often", method="lora:dropout=0.2",
                     validation={"every_steps": 1, "metrics": ["exact-match", "preference-accuracy"]})
    assert one.identity == two.identity


def test_training_stops_where_its_curve_says_and_the_best_weights_are_left(make_ctx, pico):
    whole, curve = trained(make_ctx, pico, "whole")
    losses = {r["step"]: r["dev_loss"] for r in curve if "dev_loss" in r}
    # The first step that the two evaluations after it do not beat.
    best = next(s for s in losses if losses[s] == min(losses[t] for t in losses if t <= s + 4)
                and losses[s] == min(losses[t] for t in losses if t <= s))
    assert best < 24 - 4, f"the rows do not overfit as this test needs: {losses}"
    kept, short = trained(make_ctx, pico, "kept", validation={"patience": 2, "keep": "best"})
    assert short[-1]["step"] == best + 4 and {r["step"] for r in short} == set(range(1, best + 5))
    assert kept.meta["fit"]["validation"] == {"by": "loss", "best": losses[best], "best_step": best, "stopped_early": True,
                                              "kept": "best"}
    assert kept.meta["fit"]["steps"] == best + 4
    exact = short_fit("decoder", batch_rows=3, length={"steps": best}, learning_rate=3e-2)
    inputs = {"base": pico, "examples": data(make_ctx, "exact/examples")}
    wanted = exact.run(inputs, make_ctx("exact/fit", inputs))
    one, two = (tuned_logits(add_tuned(load_base(pico), a)) for a in (kept, wanted))
    assert torch.equal(one, two), "the weights of the best step, bit for bit"
    assert not torch.equal(one, tuned_logits(add_tuned(load_base(pico), whole)))


def test_a_metric_on_generated_answers_may_decide(make_ctx, pico):
    artifact, curve = trained(make_ctx, pico, "metric", validation={
        "metrics": ["f1", "preference-accuracy"], "by": "f1", "keep": "best", "decoder": "greedy:max_new_tokens=4"})
    seen = {r["step"]: r["dev_f1"] for r in curve if "dev_f1" in r}
    first = min(s for s in seen if seen[s] == max(seen.values()))
    assert artifact.meta["fit"]["validation"]["best_step"] == first
    assert all(0 <= r["dev_preference-accuracy"] <= 1 for r in curve if "dev_f1" in r)


def test_a_measure_of_the_objective_may_decide(make_ctx, pico):
    artifact, curve = trained(make_ctx, pico, "measure", tasks=({"data": "examples.train", "objective": "dpo"},),
                              validation={"by": "margin", "keep": "best"})
    seen = {r["step"]: r["dev_margin"] for r in curve if "dev_margin" in r}
    assert artifact.meta["fit"]["validation"]["best_step"] == max(seen, key=seen.__getitem__)


@pytest.mark.parametrize("changed, why", [
    ({"validation": {"patience": 2}, "streams": {}}, r"validation needs rows.*streams: \{validation"),
    ({"validation": {"by": "f2", "keep": "best"}}, "validation.by = 'f2' is not measured here. Legal: loss"),
    ({"validation": {"keep": "best"}, "streams": {"validation": "examples.none"}}, "examples has no subset 'none'"),
])
def test_what_can_not_be_watched_is_refused(make_ctx, pico, changed, why):
    inputs = {"base": pico, "examples": data(make_ctx, "refused/examples")}
    fit = short_fit("decoder", **{"streams": {"validation": "examples.dev"}, **changed})
    with pytest.raises(UserError, match=why):
        fit.check()
        fit.run(inputs, make_ctx("refused/fit", inputs))


@pytest.mark.parametrize("at", [3, 7, 9])
def test_an_interrupted_training_stops_at_the_same_step_with_the_same_weights(make_ctx, pico, at):
    spec = {"patience": 2, "keep": "best"}
    whole, curve = trained(make_ctx, pico, "whole", validation=spec)
    again = {"validation": spec, "regularizers": (f"dummy-stop:at={at}",), "checkpoint_seconds": 0}
    if at < len(curve):
        with pytest.raises(dummies.Killed):
            trained(make_ctx, pico, "again", **again)
    resumed, other = trained(make_ctx, pico, "again", **again)
    weights = [(a.folder / "adapter_model.safetensors").read_bytes() for a in (resumed, whole)]
    assert weights[0] == weights[1]
    assert [{k: v for k, v in r.items() if k != "seconds"} for r in other] == [
        {k: v for k, v in r.items() if k != "seconds"} for r in curve]


PAIRS = {"data": {"examples.train": 1, "examples.dev": 2}, "objective": "dpo"}


@pytest.mark.parametrize("fields", [{}, {"tasks": [PAIRS], "activation_checkpointing": "on"}], ids=["answers", "pairs-mixed"])
def test_early_stopping_and_the_best_weights_survive_kill_9(tmp_path, pico, fields):
    import shutil

    shutil.copytree(pico.folder, tmp_path / "base")
    made = examples(10)
    write_examples(tmp_path / "examples", {"train": made[:6], "dev": made[6:]})
    (tmp_path / "fit.json").write_text(json.dumps({
        "streams": {"validation": "examples.dev"}, "schedule": "constant",
        "validation": {"every_steps": 1, "keep": "best", "patience": 11}, **fields}))
    chance = random.Random(11)
    kills = [f"{chance.randint(1, 3)}:{chance.randint(0, 30)}" for _ in range(3)]
    done = subprocess.run([sys.executable, "-m", "tests.contracts.killed", str(tmp_path), *kills], cwd=ROOT, text=True,
                          capture_output=True, timeout=170, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["signals"] == [9, 9, 9, 0] and found["left"]["killed"] == found["left"]["whole"]
