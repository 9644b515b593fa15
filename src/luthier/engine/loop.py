"""The one training loop.

Each optimizer step takes a batch of every task, sums un-normalised losses over micro-batches, divides by counts known
beforehand, and lets the hooks see it in a fixed order. Sampling is a pure function of (seed, step); dropout is seeded
per micro-batch; every state is in the checkpoint: a resumed run is the uninterrupted one, bit for bit on one machine.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from luthier.core.errors import LuthierError, UserError
from luthier.core.files import write_json
from luthier.core.kinds import Features, Hook, Objective, Optimizer, Schedule
from luthier.core.rng import Rng, epoch_order, rank_share
from luthier.core.step import FitCtx
from luthier.engine.batches import Batch, collate, lengths_of, narrow, tokens_in
from luthier.engine.forward import Forward
from luthier.engine.models import Model
from luthier.engine.weights import pack, unpack

Parts = dict[str, torch.Tensor]
# Rows at least this share of the longest one's length go through the model together.
SIMILAR = 0.7


@dataclass
class Task:
    """One task as encoded rows: `ids[i]` belongs to `rows[i]`."""

    name: str
    objective: Objective
    rows: Sequence[Features]
    ids: Sequence[str]
    weight: float = 1.0


@dataclass(frozen=True)
class Plan:
    """How long and how to train. `micro_rows` rows go through the model at once; gradients sum to the same batch."""

    steps: int
    batch_rows: int
    micro_rows: int
    learning_rate: float
    clip: float = 1.0
    checkpoint_seconds: float = 30.0


@dataclass
class Clock:
    """Where training is: optimizer steps done and planned, epochs done, tokens seen and learned, seconds spent."""

    step: int = 0
    steps: int = 0
    epoch: int = 0
    tokens: int = 0
    seconds: float = 0.0


def rows_at(rng: Rng, step: int, rows: int, batch: int, rank: int = 0, ranks: int = 1) -> np.ndarray:
    """Row numbers of one rank at one step: pure in (seed, step); an epoch's last batch may be smaller."""
    per_epoch = math.ceil(rows / batch)
    epoch, place = divmod(step, per_epoch)
    return rank_share(epoch_order(rng, epoch, rows)[place * batch:(place + 1) * batch], rank, ranks)


def by_length(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Places of rows in groups of similar length, at most `most` rows each, so that little work is done on padding."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        last = groups[-1] if groups else None
        if last and len(last) < most and lengths[place] >= SIMILAR * lengths[last[0]]:
            last.append(place)
        else:
            groups.append([place])
    return groups


class Masters:
    """Float32 copies of trained weights that are kept in a shorter format, so that small updates are not rounded away."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.pairs: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self.groups = []
        for group in groups:
            masters = []
            for parameter in group["params"]:
                short = parameter.dtype != torch.float32
                master = parameter.detach().float().clone().requires_grad_() if short else parameter
                self.pairs.append((parameter, master))
                masters.append(master)
            self.groups.append({**group, "params": masters})

    def collect(self) -> None:
        """Add the gradients of one micro-batch to the masters' and clear them."""
        for parameter, master in self.pairs:
            if parameter is not master and parameter.grad is not None:
                master.grad = parameter.grad.float() if master.grad is None else master.grad.add_(parameter.grad)
                parameter.grad = None

    def spread(self) -> None:
        """Copy moved masters back into the model."""
        with torch.no_grad():
            for parameter, master in self.pairs:
                if parameter is not master:
                    parameter.copy_(master)

    def tensors(self) -> list[torch.Tensor]:
        """The masters, in a fixed order."""
        return [m for _, m in self.pairs]


@dataclass
class Snapshot:
    """The whole training state; `restore()` puts it back bit for bit."""

    tree: Any
    loop: Loop

    def restore(self) -> None:
        """Put the state back; a copy of it, since training goes on in the tensors that are handed over."""
        self.loop.load_tree(copy.deepcopy(self.tree))


@dataclass
class Loop:
    """Everything one training needs. `run()` trains to the end, resuming from the last checkpoint in `folder`."""

    run: Forward
    tasks: list[Task]
    plan: Plan
    groups: Callable[[], list[dict[str, Any]]]
    optimizer: Optimizer
    schedule: Schedule
    ctx: FitCtx
    hooks: list[Hook] = field(default_factory=list)
    on_epoch: Callable[[int], Mapping[str, float]] | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.tasks or not all(t.rows for t in self.tasks):
            raise UserError("There is nothing to train on: a task has no rows.")
        self.clock = Clock(steps=self.plan.steps)
        self.masters = Masters(self.groups())
        self.torch_optimizer = self.optimizer.make(self.masters.groups, self.plan.learning_rate)
        self.rates = [g["lr"] for g in self.torch_optimizer.param_groups]
        self.rng = self.ctx.rng.within("loop")
        self.pad = self.model.tokenizer.pad_token_id or 0
        self.per_epoch = math.ceil(len(self.tasks[0].rows) / self.plan.batch_rows)
        self.ctx.clock, self.ctx.closure, self.ctx.perturbed = self.clock, self.closure, self.perturbed
        self.ctx.snapshot, self.ctx.rebuild_optimizer = self.snapshot, self.rebuild_optimizer
        # Weights that `rebuild_optimizer` took out of training, and what those it took in were before.
        self.left: dict[str, torch.nn.Parameter] = {}
        self.before: dict[str, torch.Tensor] = {}

    @property
    def model(self) -> Model:
        """The model being trained."""
        return self.run.models["policy"]

    def train(self) -> None:
        """All steps from the last checkpoint to the end."""
        self._resume()
        saved = began = time.monotonic()
        before = self.clock.seconds
        self._mode(True)
        while self.clock.step < self.plan.steps:
            row = self._step()
            self.clock.seconds = before + time.monotonic() - began
            if self.clock.step % self.per_epoch == 0:
                self._round(row)
            self.curve.append({**row, "seconds": round(self.clock.seconds, 3)})
            self.ctx.progress(self.clock.step, self.plan.steps, "steps", loss=row["loss"])
            if time.monotonic() - saved >= self.plan.checkpoint_seconds or self.clock.step == self.plan.steps:
                self.save()
                saved = time.monotonic()
        self._mode(False)

    def batch(self, task: Task, step: int) -> list[Batch]:
        """The micro-batches of one task at one step; hooks have seen the whole batch."""
        batches = [self._collate(task, rows_at(self.rng.within(task.name), step, len(task.rows), self.plan.batch_rows))]
        for hook in self.hooks:
            batches = [b for given in batches for b in hook.on_batch(given)]
        if any(kind == "coupled" for kind in task.objective.parts.values()):
            return batches  # rows of a coupled part see each other, so they stay together
        return [narrow(b, rows) for b in batches for rows in by_length(lengths_of(b), self.plan.micro_rows)]

    def _collate(self, task: Task, rows: np.ndarray) -> Batch:
        return collate([task.rows[i] for i in rows], [task.ids[i] for i in rows], self.pad, self.model.device)

    def _step(self) -> dict[str, Any]:
        step = self.clock.step
        parts: dict[str, float] = {}
        names: list[str] = []
        for task in self.tasks:
            batches = self.batch(task, step)
            names += [n for b in batches for n in b["ids"]]
            for name, value in self.closure(batches, task).items():
                parts[name] = parts.get(name, 0.0) + value
            self.clock.tokens += sum(tokens_in(b) for b in batches)
        loss = sum(parts.values())
        if not math.isfinite(loss):
            raise LuthierError(
                f"The loss of step {step + 1} is {loss}: rows {', '.join(names[:8])}. The last checkpoint is kept; lower "
                "learning_rate, or train in float32 (--set fit.dtype=float32)."
            )
        for hook in self.hooks:
            hook.on_gradients()
        if self.plan.clip:
            torch.nn.utils.clip_grad_norm_(self.masters.tensors(), self.plan.clip)
        factor = self.schedule.factor(step, self.plan.steps)
        for group, rate in zip(self.torch_optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.torch_optimizer.step()
        self.torch_optimizer.zero_grad(set_to_none=True)
        self.masters.spread()
        for hook in self.hooks:
            hook.on_step()
        self.clock.step += 1
        return {"step": self.clock.step, "epoch": self.clock.step / self.per_epoch, "tokens": self.clock.tokens,
                "loss": loss, "learning_rate": self.rates[0] * factor,
                **({"parts": parts} if len(parts) > 1 else {})}

    def closure(self, batches: Sequence[Batch], task: Task | None = None, rng: str = "") -> dict[str, float]:
        """Add the gradients of these micro-batches and return the weighted parts. `rng` names another dropout draw."""
        task = task or self.tasks[0]
        self.run.task = task.name
        counts: dict[str, float] = {}
        for batch in batches:
            for name, n in task.objective.count(batch).items():
                counts[name] = counts.get(name, 0.0) + n
        coefficients = task.objective.coefficients()
        values: dict[str, float] = {}
        for i, batch in enumerate(batches):
            torch.manual_seed(self.rng.key(f"dropout{rng}/{task.name}", f"{self.clock.step}/{i}"))
            parts: Parts = task.objective.loss(self.run, batch)
            for hook in self.hooks:
                parts = hook.on_loss(self.run, batch, parts)
            scaled = {n: task.weight * coefficients.get(n, 1.0) * p / max(counts.get(n, 1.0), 1e-12)
                      for n, p in parts.items()}
            torch.stack([p.float() for p in scaled.values()]).sum().backward()
            self.masters.collect()
            for name, part in scaled.items():
                values[name] = values.get(name, 0.0) + float(part.detach())
        return values

    @contextmanager
    def perturbed(self, delta: Sequence[torch.Tensor]) -> Iterator[None]:
        """Weights moved by `delta` (one tensor a trained weight) within the block, put back exactly after it."""
        kept = [p.detach().clone() for p, _ in self.masters.pairs]
        with torch.no_grad():
            for (parameter, _), move in zip(self.masters.pairs, delta, strict=True):
                parameter.add_(move.to(parameter.dtype))
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), was in zip(self.masters.pairs, kept, strict=True):
                    parameter.copy_(was)

    def rebuild_optimizer(self, keep: bool = True) -> None:
        """Choose the trained weights anew from the method's groups; `keep` carries the state of those that stay."""
        old = {id(p): self.torch_optimizer.state.get(m, {}) for p, m in self.masters.pairs}
        was = {id(p) for p, _ in self.masters.pairs}
        self.masters = Masters(self.groups())
        self.torch_optimizer = self.optimizer.make(self.masters.groups, self.plan.learning_rate)
        self.rates = [g["lr"] for g in self.torch_optimizer.param_groups]
        for parameter, master in self.masters.pairs:
            if keep and old.get(id(parameter)):
                self.torch_optimizer.state[master] = old[id(parameter)]
        now = {id(p) for p, _ in self.masters.pairs}
        for name, parameter in self._weights().items():
            if id(parameter) in was - now:
                self.left[name] = parameter
            elif id(parameter) in now:
                self.left.pop(name, None)
                if id(parameter) not in was:
                    self.before.setdefault(name, parameter.detach().clone())

    def _round(self, row: dict[str, Any]) -> None:
        self.clock.epoch += 1
        for hook in self.hooks:
            hook.on_round()
        if self.on_epoch:
            self._mode(False)
            with torch.no_grad():
                row.update(self.on_epoch(self.clock.epoch))
            self._mode(True)

    def _mode(self, training: bool) -> None:
        for module in (self.model.module, *self.model.heads.values()):
            module.train(training)

    # --- state -------------------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, torch.nn.Parameter]:
        modules = {"": self.model.module, **{f"{task}:": head for task, head in self.model.heads.items()}}
        return {f"{prefix}{n}": p for prefix, module in modules.items() for n, p in module.named_parameters()}

    def tree(self) -> dict[str, Any]:
        """Every state as nested dictionaries."""
        return {
            "clock": asdict(self.clock), "curve": self.curve,
            "trained": [n for n, p in self._weights().items() if p.requires_grad],
            "left": {n: p.detach() for n, p in self.left.items()},
            "masters": [m.detach() for m in self.masters.tensors()],
            "optimizer": self.torch_optimizer.state_dict(),
            "hooks": [h.state_dict() for h in self.hooks],
        }

    def load_tree(self, tree: dict[str, Any]) -> None:
        """The inverse of `tree`."""
        for name, value in tree["clock"].items():
            setattr(self.clock, name, value)
        self.curve = list(tree["curve"])
        self._choose(tree["trained"], tree["left"])
        with torch.no_grad():
            for master, tensor in zip(self.masters.tensors(), tree["masters"], strict=True):
                master.copy_(tensor)
        self.masters.spread()
        self.torch_optimizer.load_state_dict(tree["optimizer"])
        for hook, state in zip(self.hooks, tree["hooks"], strict=True):
            hook.load_state_dict(state)

    def _choose(self, trained: Sequence[str], left: Mapping[str, torch.Tensor]) -> None:
        """Train these weights again, and put back those that were trained before."""
        weights = self._weights()
        with torch.no_grad():
            for name, tensor in {**self.before, **left}.items():
                weights[name].copy_(tensor)
        if set(trained) != {n for n, p in weights.items() if p.requires_grad}:
            for name, parameter in weights.items():
                parameter.requires_grad_(name in set(trained))
            self.rebuild_optimizer(False)
        self.left = {n: weights[n] for n in left}

    def snapshot(self) -> Snapshot:
        """A copy of every state in memory."""
        tensors: dict[str, torch.Tensor] = {}
        skeleton = json.loads(json.dumps(pack(self.tree(), tensors)))
        return Snapshot(unpack(skeleton, tensors), self)

    def save(self) -> None:
        """Write a checkpoint beside the last one, then drop the last one: one of them is always whole."""
        root = self.ctx.folder / "checkpoints"
        work, final = root / "part", root / f"step-{self.clock.step:07d}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        tensors: dict[str, torch.Tensor] = {}
        skeleton = pack(self.tree(), tensors)
        save_file(tensors, work / "state.safetensors")
        write_json(work / "state.json", skeleton)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(work, final)
        for old in root.glob("step-*"):
            if old != final:
                shutil.rmtree(old)

    def _resume(self) -> None:
        found = sorted((self.ctx.folder / "checkpoints").glob("step-*"))
        if found:
            self.load_tree(read_checkpoint(found[-1]))
            self.ctx.log(f"training goes on at step {self.clock.step} of {self.plan.steps}")


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The state tree of a checkpoint folder."""
    skeleton = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tree = unpack(skeleton, load_file(folder / "state.safetensors"))
    assert isinstance(tree, dict)
    return tree
