"""The one training loop.

Each optimizer step takes a batch of every task, or of those whose turn it is (`turns`), sums un-normalised losses over
micro-batches, divides by counts known beforehand, and lets the hooks see it in a fixed order. Sampling is a pure function of
(seed, step); dropout is seeded per micro-batch; every state is in the checkpoint: a resumed run is the uninterrupted one, bit
for bit on one machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.core.errors import UserError
from luthier.core.files import Growing
from luthier.core.kinds import Features, Hook, Objective, Optimizer, Schedule, Tokens
from luthier.core.rng import Rng, epoch_order, rank_share
from luthier.core.step import FitCtx
from luthier.engine import coupled, distributed, guards, sharding
from luthier.engine.batches import Batch, by_length, collate, lengths_of, narrow, packs_of, tokens_in
from luthier.engine.checkpoints import State
from luthier.engine.forward import Forward
from luthier.engine.masters import Masters
from luthier.engine.mixing import Mixture
from luthier.engine.models import Model
from luthier.engine.turns import Turns, steps_of_epoch
from luthier.engine.validation import Validation

Parts = dict[str, torch.Tensor]


@dataclass
class Task:
    """One task as encoded rows: `ids[i]` belongs to `rows[i]`.

    `weight` is that of all parts of its loss, `scale` a factor of the objective's own parts alone.
    """

    name: str
    objective: Objective
    rows: Sequence[Features]
    ids: Sequence[str]
    weight: float = 1.0
    mixture: Mixture | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Plan:
    """How long and how to train.

    At most `micro_rows` rows and about `micro_tokens` tokens go through the model at once; gradients sum to those of
    the whole batch.
    """

    steps: int
    batch_rows: int
    micro_rows: int
    learning_rate: float
    micro_tokens: int = 1024
    clip: float = 1.0
    checkpoint_seconds: float = 30.0
    # Masters and optimizer states in the computer's memory, beside a GPU's.
    beside: bool = False


@dataclass
class Clock:
    """Where training is: optimizer steps done and planned, epochs done, tokens seen and learned, seconds spent.

    A training may have phases, each with a schedule of its own: this one runs from step `began` to step `until`.
    `rate` is the learning rate of the step that is being made.
    """

    step: int = 0
    steps: int = 0
    began: int = 0
    until: int = 0
    rate: float = 0.0
    epoch: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Counts:
    """Of one task's batch over all ranks: units of each part, micro-batches, and most micro-batches of one rank."""

    parts: Mapping[str, float]
    micros: int
    most: int


def rows_at(rng: Rng, step: int, rows: int, batch: int, rank: int = 0, ranks: int = 1) -> np.ndarray:
    """Row numbers of one rank at one step: pure in (seed, step); an epoch's last batch may be smaller."""
    per_epoch = math.ceil(rows / batch)
    epoch, place = divmod(step, per_epoch)
    return rank_share(epoch_order(rng, epoch, rows)[place * batch:(place + 1) * batch], rank, ranks)


@dataclass(frozen=True)
class Rows:
    """The rows that a training's first task learns from, for a hook that draws some itself. `rows.batch(places)`."""

    loop: Loop
    name: str = ""

    @property
    def task(self) -> Task:
        """The first task, or one of further rows that is not trained on."""
        return self.loop.further[self.name] if self.name else self.loop.tasks[0]

    def of(self, name: str) -> Rows:
        """Further rows that a method or regularizer asked for (`streams`)."""
        return Rows(self.loop, name)

    def __len__(self) -> int:
        return len(self.task.rows)

    @property
    def per_batch(self) -> int:
        """How many rows an optimizer step takes."""
        return self.loop.plan.batch_rows

    def batch(self, places: Sequence[int] | np.ndarray) -> Batch:
        """The rows at these places, uncut."""
        return self.loop.collate(self.task, places)


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
    validation: Validation | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)
    # Rows that hooks draw from and nothing else learns, by name.
    further: dict[str, Task] = field(default_factory=dict)
    # Further parts with a state of their own (`state_dict`, `load_state_dict`), kept in checkpoints by name.
    kept: dict[str, Any] = field(default_factory=dict)
    # Where the curve grows while it is drawn, for whoever watches from outside; what the loop knows is in its checkpoints.
    live: Path | None = None
    # Which tasks a step takes; a batch of each where nothing is said.
    turns: Turns | None = None

    def __post_init__(self) -> None:
        if not self.tasks or not all(t.rows for t in self.tasks):
            raise UserError("There is nothing to train on: a task has no rows.")
        distributed.refuse_coupled(t.objective for t in self.tasks)
        if self.validation:
            self.kept["validation"] = self.validation
        self.clock = Clock(steps=self.plan.steps, until=self.plan.steps)
        self.masters = Masters(sharding.groups_apart(self.groups()), self.plan.beside)
        self.torch_optimizer = self.optimizer.make(self.masters.groups, self.plan.learning_rate)
        self.rates = [g["lr"] for g in self.torch_optimizer.param_groups]
        self.rng = self.ctx.rng.within("loop")
        self.pad = self.model.tokenizer.pad_token_id or 0
        self.per_epoch = steps_of_epoch([len(t.rows) for t in self.tasks], self.plan.batch_rows, self.turns)
        self.ctx.clock, self.ctx.closure, self.ctx.perturbed = self.clock, self.closure, self.perturbed
        self.micro = guards.decided(self.ctx.journal, guards.Micro(self.plan.micro_rows, self.plan.micro_tokens))
        self.state = State(self)
        self.ctx.rows = Rows(self)
        self.ctx.snapshot, self.ctx.rebuild_optimizer = self.state.snapshot, self.rebuild_optimizer

    @property
    def model(self) -> Model:
        """The model being trained."""
        return self.run.models["policy"]

    def scores(self) -> float:
        """Scores over the vocabulary that all steps will make, about."""
        head = self.run.vocabulary_size
        learned = sum(sum(part.targets) for t in self.tasks for row in t.rows for part in row.values()
                      if isinstance(part, Tokens))
        return float(head * learned * self.plan.steps / max(1, self.per_epoch))

    def train(self) -> None:
        """All steps from the last checkpoint to the end."""
        self.state.resume()
        distributed.require_same(self.masters.tensors())
        saved = began = time.monotonic()
        before = self.clock.seconds
        if self.run.frozen:
            self.run.frozen.ready(fill=self.clock.step < self.plan.steps)
        self._mode(True)
        growing = Growing(self.live, self.curve) if self.live and not distributed.rank() else None
        while self.clock.step < self.plan.steps and not self.stopped:
            row = self._step()
            self.clock.seconds = before + time.monotonic() - began
            round_ended = self.clock.step % self.per_epoch == 0
            if round_ended:
                self._round()
            self._validate(row, round_ended)
            self.curve.append({**row, "seconds": round(self.clock.seconds, 3)})
            if growing:
                growing.add(self.curve[-1])
            self.ctx.progress(self.clock.step, self.plan.steps, "steps", loss=row["loss"])
            due = time.monotonic() - saved >= self.plan.checkpoint_seconds or self.clock.step == self.plan.steps
            if distributed.agreed(due or self.stopped):
                self.state.save()
                saved = time.monotonic()
        if growing:
            growing.close()
        if self.validation and self.validation.spec.keep == "best":
            self.state.load_best(self.validation.best_step)
        self._mode(False)

    @property
    def stopped(self) -> bool:
        """Whether the validation has ended the training before its planned length."""
        return self.validation is not None and self.validation.stopped

    def batch(self, task: Task, step: int) -> list[Batch]:
        """This rank's micro-batches of a task's batch number `step`; hooks have seen its rows whole. None when it has none."""
        rng, size = self.rng.within(task.name), self.plan.batch_rows
        mine = distributed.rank(), distributed.ranks()
        rows = task.mixture.rows_at(rng, step, size, *mine) if task.mixture else \
            rows_at(rng, step, len(task.rows), size, *mine)
        batches = [self.collate(task, rows)] if len(rows) else []
        for hook in self.hooks:
            batches = [b for given in batches for b in hook.on_batch(given)]
        return self._cut(task, batches)

    def _cut(self, task: Task, batches: list[Batch]) -> list[Batch]:
        if any(kind == "coupled" for kind in task.objective.parts.values()):
            return batches  # rows of a coupled part see each other: `coupled` cuts them where that is exact
        cut = packs_of if self.run.packs["policy"] else by_length
        return [narrow(b, rows) for b in batches
                for rows in cut(lengths_of(b), self.micro.rows, self.micro.tokens)]

    def collate(self, task: Task, rows: Sequence[int] | np.ndarray) -> Batch:
        """These rows of a task as one batch."""
        return collate([task.rows[i] for i in rows], [task.ids[i] for i in rows], self.pad, self.model.device)

    def _step(self) -> dict[str, Any]:
        step = self.clock.step
        clock = self.clock
        factor = self.schedule.factor(step - clock.began, clock.until - clock.began)
        clock.rate = self.rates[0] * factor
        parts, tokens = guards.gradients(self)
        self.clock.tokens += tokens
        for hook in self.hooks:
            hook.on_gradients()
        guards.require_finite_gradients(self, sharding.clip_(self.masters.tensors(), self.plan.clip or math.inf))
        for group, rate in zip(self.torch_optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.torch_optimizer.step()
        self.torch_optimizer.zero_grad(set_to_none=True)
        self.masters.spread()
        for hook in self.hooks:
            hook.on_step()
        self.clock.step += 1
        return {"step": clock.step, "epoch": clock.step / self.per_epoch, "tokens": clock.tokens,
                "loss": sum(parts.values()), "learning_rate": clock.rate,
                **({"parts": parts} if len(parts) > 1 else {}), **self.run.take()}

    def closure(self, batches: Sequence[Batch], task: Task | None = None, rng: str = "",
                into: list[torch.Tensor] | None = None, plus: Sequence[torch.Tensor] = ()) -> dict[str, float]:
        """Add the gradients of these batches and return the weighted parts. `rng` names another dropout draw.

        into: a list that takes all gradients there are then, one a trained weight in the order of `perturbed`. plus: gradients
        in that order that are added.
        """
        task = task or self.tasks[0]
        batches = self._cut(task, list(batches))
        measured = dict(self.run.measured)
        before = self.masters.taken() if distributed.ranks() > 1 else []
        values = distributed.summed(self.accumulate(batches, task, self.counts(batches, task), rng))
        distributed.sum_gradients(self.masters.tensors())
        self.masters.add(before)
        self.masters.add(plus)
        self.run.measured = measured  # what is shown is that of the training rows
        self.clock.tokens += int(distributed.summed({"tokens": sum(map(tokens_in, batches))})["tokens"])
        if into is not None:
            into += [torch.zeros_like(m) if g is None else g
                     for m, g in zip(self.masters.tensors(), self.masters.taken(), strict=True)]
        return values

    def counts(self, batches: Sequence[Batch], task: Task) -> Counts:
        """What each part sums over, and how many micro-batches there are, on all ranks together."""
        counts: dict[str, float] = {}
        for batch in batches:
            for found in (task.objective.count(batch), *(hook.units(batch) for hook in self.hooks)):
                for name, n in found.items():
                    counts[name] = counts.get(name, 0.0) + n
        shares = distributed.gathered(len(batches))
        return Counts(distributed.summed(counts), sum(shares), max(shares))

    def parts(self, batch: Batch, task: Task, seen: Parts | None = None) -> Parts:
        """The parts of the loss of one micro-batch, un-normalised, as the hooks leave them.

        seen: the rows' representations, where they went through the model before.
        """
        objective = task.objective
        parts: Parts = objective.loss(self.run, batch) if seen is None else objective.couple(self.run, batch, seen)
        for hook in self.hooks:
            parts = hook.on_loss(self.run, batch, parts)
        return parts

    def accumulate(self, batches: Sequence[Batch], task: Task, counts: Counts, rng: str = "", share: float = 1.0
                   ) -> dict[str, float]:
        """Add this rank's gradients to the masters; parts are divided by `counts` and weighed by `share`.

        A part that nothing counts, such as a penalty on weights, belongs to the whole step: each micro-batch bears its
        share.
        """
        self.run.task = task.name
        coefficients = task.objective.coefficients()
        weights = {n: task.weight * task.scale * coefficients.get(n, 1.0) for n in (*task.objective.parts, *coefficients)}
        own = f"/{distributed.rank()}" if distributed.rank() else ""
        values: dict[str, float] = {}
        for i, batch in enumerate(batches):
            def seed(part: str = "", i: int = i) -> None:
                torch.manual_seed(self.rng.key(f"dropout{rng}/{task.name}", f"{self.clock.step}/{i}{own}{part}"))

            gathered = coupled.gather(self.run, task.objective, batch, self.micro, seed)
            seed()
            scaled = {n: share * weights.get(n, task.weight) * p / max(counts.parts.get(n, counts.micros), 1e-12)
                      for n, p in self.parts(batch, task, gathered.seen if gathered else None).items()}
            torch.stack([p.float() for p in scaled.values()]).sum().backward()
            if gathered:
                gathered.spread()
            self.masters.collect()
            for name, part in scaled.items():
                values[name] = values.get(name, 0.0) + float(part.detach())
        if sharding.is_sharded(self.masters.tensors()):
            for _ in range(counts.most - len(batches)):  # every rank takes part in putting layers together
                self._idle(task)
        return values

    def _idle(self, task: Task) -> None:
        parts = task.objective.loss(self.run, self.collate(task, np.zeros(1, dtype=int)))
        (0.0 * torch.stack([p.float() for p in parts.values()]).sum()).backward()
        self.masters.collect()

    @contextmanager
    def perturbed(self, delta: Sequence[torch.Tensor] | Mapping[torch.nn.Parameter, torch.Tensor]) -> Iterator[None]:
        """Weights moved by `delta` (one tensor a trained weight, or by weight) within the block, put back exactly after it.

        A weight's values are exchanged, not written over: the block may lie between a forward and its backward.
        """
        moves = delta if isinstance(delta, Mapping) else dict(zip((p for p, _ in self.masters.pairs), delta, strict=True))
        kept = [(p, p.data) for p in moves]
        try:
            for parameter, move in moves.items():
                parameter.data = (parameter.data.float() + move.to(parameter.device).float()).to(parameter.dtype)
            yield
        finally:
            for parameter, was in kept:
                parameter.data = was

    def rebuild_optimizer(self, keep: bool = True) -> None:
        """Choose the trained weights anew from the method's groups; `keep` carries the state of those that stay."""
        old = {id(p): self.torch_optimizer.state.get(m, {}) for p, m in self.masters.pairs}
        was = {id(p) for p, _ in self.masters.pairs}
        self.masters = Masters(sharding.groups_apart(self.groups()), self.plan.beside)
        self.torch_optimizer = self.optimizer.make(self.masters.groups, self.plan.learning_rate)
        self.rates = [g["lr"] for g in self.torch_optimizer.param_groups]
        for parameter, master in self.masters.pairs:
            if keep and old.get(id(parameter)):
                self.torch_optimizer.state[master] = old[id(parameter)]
        now = {id(p) for p, _ in self.masters.pairs}
        self.state.moved(was, now)
        if self.run.frozen:
            self.run.frozen.changed()

    def _round(self) -> None:
        self.clock.epoch += 1
        for hook in self.hooks:
            hook.on_round()

    def _validate(self, row: dict[str, Any], round_ended: bool) -> None:
        """Evaluate if it is time; what is found goes to the curve, the best state to a checkpoint of its own."""
        if self.validation is None or not self.validation.due(self.clock, round_ended):
            return
        self._mode(False)
        with torch.no_grad():
            row.update(self.validation(self.clock.step, judge=self.clock.until == self.clock.steps))
        self._mode(True)
        if self.validation.spec.keep == "best" and self.validation.best_step == self.clock.step:
            self.state.save_best()

    def _mode(self, training: bool) -> None:
        for module in (self.model.module, *self.model.heads.values()):
            module.train(training)
