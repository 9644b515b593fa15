"""Memory that runs out, numbers that are none, disks that are full: the step is exact or the training stops in words."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import LuthierError
from luthier.core.kinds import Hook
from luthier.engine import guards
from luthier.engine.checkpoints import read_checkpoint
from luthier.engine.models import load_base
from tests.contracts import dummies
from tests.contracts.workbench import encode, examples, make_loop
from tests.engine import pair

ROOT = Path(__file__).parents[2]


class Hungry(Hook):
    """Memory for at most `rows` rows, as one of the errors that say so; from step `after` on."""

    def __init__(self, loop, rows: int, error: Exception, after: int = 0) -> None:
        self.loop, self.rows, self.error, self.after = loop, rows, error, after
        self.seen: list[int] = []

    def on_loss(self, run, batch, parts):
        self.seen.append(len(batch["ids"]))
        if self.loop.clock.step >= self.after and len(batch["ids"]) > self.rows:
            raise self.error
        return parts


def weights(loop) -> list[torch.Tensor]:
    return [t.detach().clone() for t in loop.masters.tensors()]


ERRORS = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), MemoryError(),
          RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
          RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes.")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__ + str(e)[-8:])
def test_memory_that_runs_out_halves_until_it_fits(pico, engine, tmp_path, error):
    whole = pair.trained(pico, engine, tmp_path / "whole/loop")
    logged = []

    def hungry(loop):
        loop.ctx.log = logged.append
        return Hungry(loop, 1, error, after=2)

    loop = pair.trained(pico, engine, tmp_path / "halved/loop", hungry)
    assert loop.hooks[0].seen[0] == 4 and max(loop.hooks[0].seen[-4:]) == 1
    assert [r["loss"] for r in loop.curve] == pytest.approx([r["loss"] for r in whole.curve], abs=1e-6)
    assert [r["tokens"] for r in loop.curve] == [r["tokens"] for r in whole.curve], "the batch is the same"
    assert all(torch.allclose(a, b, atol=5e-5) for a, b in zip(weights(loop), weights(whole), strict=True))
    halved = [at for at in loop.ctx.journal.values["micro"]["at"]]
    assert loop.micro.rows == 1 and halved == [4, 4] and "memory ran out in step 4" in logged[-1]
    assert "The batch stays 4 rows; this run is not bit-reproducible any more" in logged[-1]
    assert guards.decisions(loop.ctx.journal) == {"micro_rows": 1, "micro_tokens": 256, "halved_at_steps": [4, 4],
                                                  "bit_reproducible": False}
    again = pair.trained(pico, engine, tmp_path / "halved/loop", lambda loop: Hook(), steps=7)
    assert again.micro.rows == 1, "another start does not try the larger one again"
    assert guards.decisions(whole.ctx.journal) == {}


def test_one_row_that_does_not_fit_is_said(pico, engine, tmp_path):
    with pytest.raises(LuthierError, match=r"ran out in step 1 with one row in the model \(CUDA out.*max_tokens_per_example"):
        pair.trained(pico, engine, tmp_path / "loop", lambda loop: Hungry(loop, 0, ERRORS[0]))


def test_rows_that_stay_together_are_not_halved(pico, make_ctx):
    model = load_base(pico)
    model.module.requires_grad_(True)
    objective = dummies.DummyCoupled()
    loop = make_loop(model, objective, encode(objective, model, examples(8)), make_ctx("loop"))
    loop.hooks = [Hungry(loop, 2, ERRORS[1])]
    with pytest.raises(LuthierError, match="see each other and stay together, in the model.*fewer batch_rows"):
        loop.train()


def test_another_error_is_not_taken_for_memory(pico, engine, tmp_path):
    with pytest.raises(RuntimeError, match="shapes"):
        pair.trained(pico, engine, tmp_path / "loop", lambda loop: Hungry(loop, 0, RuntimeError("shapes can't be multiplied")))


LIMITED = """
import resource, sys
from pathlib import Path
from luthier.core.artifact import open_artifact
from luthier.core.kinds import Hook
from luthier.engine.workshop import Engine
from tests.engine import pair
from tests.engine.test_guards import Greedy
loop = pair.trained(open_artifact(Path(sys.argv[1])), Engine(threads=1, exact=True), Path(sys.argv[2]) / "loop", Greedy)
print(loop.micro.rows, loop.ctx.journal.values["micro"]["at"], [r["loss"] for r in loop.curve][-1])
"""


class Greedy(Hook):
    """Takes 256 MB for every row of a micro-batch, of the 768 MB that are left to the process."""

    def __init__(self, loop) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + (768 << 20),) * 2)

    def on_loss(self, run, batch, parts):
        block = torch.empty(len(batch["ids"]) << 26)
        return {n: p + 0 * block[0].detach().nan_to_num() for n, p in parts.items()}


def test_a_process_that_may_not_have_more_goes_on_with_less(pico, engine, tmp_path):
    whole = pair.trained(pico, engine, tmp_path / "whole/loop")
    said = subprocess.run([sys.executable, "-c", LIMITED, str(pico.folder), str(tmp_path)], text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])})
    assert said.returncode == 0, said.stderr
    rows, at, loss = said.stdout.split(" ", 2)[0], said.stdout[2:-1].rpartition(" ")[0], said.stdout.split()[-1]
    assert rows == "2" and at == "[1]" and float(loss) == pytest.approx(whole.curve[-1]["loss"], abs=1e-6)


def test_the_micro_batch_fits_into_the_memory_that_is_free(pico, monkeypatch):
    model = load_base(pico)
    config = model.module.config
    a_token = 4 * config.num_hidden_layers * (16 * config.hidden_size + 3 * config.intermediate_size)
    monkeypatch.setattr(guards, "available_mb", lambda: 2 * 100 * a_token / 1e6)
    assert guards.micro_tokens(model) == 100 and guards.micro_tokens(model, exact=True) == 1024
    monkeypatch.setattr(guards, "available_mb", lambda: 1e5)
    assert guards.micro_tokens(model) == 1024
    monkeypatch.setattr(guards, "available_mb", lambda: 0.0)
    assert guards.micro_tokens(model) == 1


# --- numbers that are none -----------------------------------------------------------------------------------------

class Poison(Hook):
    """Rows whose loss is infinite, or whose loss is finite and its gradient not, from step `after` on."""

    def __init__(self, loop, bad: tuple[str, ...], after: int, gradient: bool) -> None:
        self.loop, self.bad, self.after, self.gradient = loop, bad, after, gradient

    def on_loss(self, run, batch, parts):
        if self.loop.clock.step < self.after or not set(self.bad) & set(batch["ids"]):
            return parts
        weight = self.loop.masters.tensors()[0]
        # The square root has no finite slope at 0.
        poison = (weight.sum() * 0).sqrt() if self.gradient else torch.tensor(float("inf"))
        return {n: p + poison for n, p in parts.items()}


def stopped(pico, engine, folder, match, *hooks, **plan):
    """A training that must stop; its checkpoint is whole and finite. Returns its step."""
    with pytest.raises(LuthierError, match=match):
        pair.trained(pico, engine, folder / "loop", *hooks, checkpoint_seconds=0, **plan)
    found = list((folder / "loop/checkpoints").glob("*"))
    assert len(found) <= 1
    if not found:
        return 0
    tree = read_checkpoint(found[0])
    assert all(bool(torch.isfinite(t).all()) for t in tree["masters"])
    return tree["clock"]["step"]


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("micro", [1, 4])
def test_rows_to_blame_are_named_and_the_last_checkpoint_is_kept(pico, engine, tmp_path, gradient, micro):
    names = r"The gradient of step 4 is nan: rows row\d" if gradient else r"The loss of step 4 is inf: rows row\d"
    at = stopped(pico, engine, tmp_path, names + r"(, row\d)?\. The last checkpoint is kept\.",
                 lambda loop: Poison(loop, _two_of(loop), 3, gradient), micro_rows=micro)
    assert at == 3


def _two_of(loop) -> tuple[str, ...]:
    return tuple(loop.batch(loop.tasks[0], 3)[0]["ids"][:2])


def test_more_rows_than_can_be_read_are_counted():
    assert guards._few([f"r{i}" for i in range(11)]) == "r0, r1, r2, r3, r4, r5, r6, r7 and 3 more"


class Overflow(Hook):
    """An optimizer that leaves a weight which is none, after the third step."""

    def __init__(self, loop) -> None:
        self.loop = loop

    def on_step(self) -> None:
        if self.loop.clock.step == 2:
            self.loop.masters.tensors()[1].data[0] = float("inf")


def test_weights_that_are_none_are_not_kept(pico, engine, tmp_path):
    assert stopped(pico, engine, tmp_path, "After step 3 the weights of '.*lora_B.*' are not finite", Overflow) == 2


def test_a_learning_rate_beyond_all_reason_leaves_a_finite_checkpoint(pico, engine, tmp_path):
    at = stopped(pico, engine, tmp_path, r"The (loss|gradient) of step \d is .*: rows .*which is every row", rate=1e30)
    assert at >= 1, "what was finite was kept"


# --- a full disk ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_whole(pico, engine, tmp_path, share):
    whole = pair.trained(pico, engine, tmp_path / "whole/loop")
    first = pair.trained(pico, engine, tmp_path / "full/loop", steps=3)
    kept = first.ctx.folder / "checkpoints/step-0000003"
    before = {p.name: p.read_bytes() for p in kept.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * len(before["state.safetensors"])), hard))
    try:
        with pytest.raises(Exception) as caught:
            pair.trained(pico, engine, tmp_path / "full/loop")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    from luthier.pipelines.jobs import _disk_error

    assert _disk_error(caught.value), "it is known for what it is"
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == before
    again = pair.trained(pico, engine, tmp_path / "full/loop")
    assert [p.name for p in (again.ctx.folder / "checkpoints").iterdir()] == ["step-0000006"]
    assert all(torch.equal(a, b) for a, b in zip(weights(again), weights(whole), strict=True))


def test_a_line_that_does_not_fit_is_not_half_written(make_ctx):
    ctx = make_ctx("journal")
    ctx.journal.put("a", "x" * 100)
    size = ctx.journal.path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        with pytest.raises(OSError):
            ctx.journal.put("b", "y" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ctx.journal.path.stat().st_size == size and "b" not in ctx.journal
    ctx.journal.put("b", "z")
    assert make_ctx("journal").journal.values == {"a": "x" * 100, "b": "z"}


def test_an_artifact_that_does_not_fit_is_no_artifact(pico, make_ctx):
    from luthier.engine import weights as forms

    model = build("method", "lora").prepare(load_base(pico), make_ctx("method"))
    folder = make_ctx("artifact").folder
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(Exception):
            forms.save(model, "adapter", folder, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (folder / "luthier.json").exists(), "the record is written last"
    assert forms.save(model, "adapter", folder, {}).kind == "adapter"
