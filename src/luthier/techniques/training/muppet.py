"""Muppet: pre-finetuning on many tasks at once, between pretraining and fine-tuning.

One shared body and a head for each task. A step accumulates `accumulate` batches, each of one task; tasks are drawn with a
chance of rows^(1 / temperature), so that a step moves by several tasks. The loss of task i is divided by log n_i, n_i being how
many answers it chooses from: labels, the options of a row, the tokens of a text that holds a span, the vocabulary of a
text that is written. So an untrained head says about 1, whatever the task:

    gradient of a step = 1/G sum over its G batches of gradient( mean loss of the batch / log n_i ) + that of the regularizers

r3f (`where: labels`) is the regularizer of the paper. What is left is the body: the heads lie beside it, and the step
`whole-model` makes of it a base to tune on a task of one's own. `batches: alike` (all batches of a step from one task) and
`scale: none` are what the paper compares with. `n_tasks` trains on so many of the tasks, drawn by the seed; 0 on none.

When it helps: few labels, and labelled data of some twenty other tasks at hand; with few tasks it is said to hurt (below
about 15). Source: Aghajanyan et al. 2021, "Muppet: massive multi-task representations with pre-finetuning", arXiv 2101.11038.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact
from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.finding import Finding
from luthier.core.kinds import Method, Regularizer, Schedule
from luthier.core.step import Ctx
from luthier.engine.steps.fit import Fit
from luthier.engine.steps.specs import Length, TaskSpec

if TYPE_CHECKING:
    from luthier.engine.encoding import Encoded
    from luthier.engine.forward import Forward
    from luthier.engine.loop import Task
    from luthier.engine.models import Model
    from luthier.engine.rendering import Render
    from luthier.engine.turns import Turns


class Muppet(Fit, name="muppet", seeds=[16]):
    """Train a body on many tasks of a manifest, each with a head of its own, in steps that several tasks share."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "manifest": "examples"}
    heads_answer: ClassVar[bool] = False
    tasks: tuple[TaskSpec, ...] = Field((), description="they come from the input `manifest`")
    method: Slot[Method] = Field(named("full"), description="which weights move")
    regularizers: tuple[Slot[Regularizer], ...] = Field(named(("r3f:where=labels",)), description="added to the losses")
    schedule: Slot[Schedule] = Field(named("polynomial:power=1"), description="how the learning rate changes")
    length: Length = Field(named({"epochs": 1}), description="{epochs: N} over the rows of all tasks, or {steps: N}")
    accumulate: int = Field(8, ge=1, description="batches of an optimizer step, each of one task")
    temperature: float = Field(1.0, gt=0, description="rows are raised to 1 / temperature: above 1 small tasks come oftener")
    scale: Literal["log-classes", "none"] = Field("log-classes", description="losses divided by log of the possible answers")
    batches: Literal["mixed", "alike"] = Field("mixed", description="of a step: each of a drawn task, or all of one task")
    n_tasks: int | None = Field(None, ge=0, description="so many of the tasks, drawn by the seed; 0 trains nothing")

    def check(self) -> None:
        """Refuse tasks that are named by hand, and validation, which looks at one task."""
        if self.tasks:
            raise UserError("muppet: tasks come from the manifest (inputs: {manifest: STEP}); leave the field tasks out.")
        if self.streams:
            raise UserError("muppet: streams are those of one task, and a step has several. Leave them out.")
        super().check()

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError for a task with fewer rows than a batch, or more tasks wanted than there are."""
        return Fit.run(self.over(inputs["manifest"], ctx), inputs, ctx)

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Those of any training, over its tasks."""
        return Fit.receipts(self.over(inputs["manifest"], ctx), inputs, artifact, ctx)

    def over(self, given: Artifact, ctx: Ctx) -> Muppet:
        """The step with the tasks of a manifest that it trains on."""
        known: Mapping[str, Mapping[str, Any]] = given.meta.get("tasks", {})
        if not known:
            raise UserError("muppet: the input 'manifest' is none. Read one with {use: tasks, path: tasks.yaml}.")
        names = sorted(known)
        if self.n_tasks is not None and self.n_tasks > len(names):
            raise UserError(f"n_tasks = {self.n_tasks}, but the manifest has {len(names)} tasks.")
        if self.n_tasks == 0:
            names = names[:1]  # nothing is trained: any task will do
        if self.n_tasks:
            names = sorted(names[i] for i in ctx.rng("tasks").permutation(len(names))[:self.n_tasks])
        for name in names:
            if known[name]["rows"] < self.batch_rows:
                raise UserError(f"Task '{name}' has {known[name]['rows']} rows, fewer than a batch (batch_rows = "
                                f"{self.batch_rows}). Leave it out, or take smaller batches.")
        specs = tuple(TaskSpec(data=f"manifest.{name}", objective=self._objective(known[name]),
                               head="linear" if known[name]["type"] != "s2s" else None) for name in names)
        nothing = {"length": Length(steps=0)} if self.n_tasks == 0 else {}
        return self.model_copy(update={"tasks": specs, **nothing})

    def per_epoch(self, tasks: Sequence[Task]) -> int:
        return math.ceil(sum(len(t.rows) for t in tasks) / (self.batch_rows * self.accumulate))

    def turns(self, tasks: Sequence[Task], steps: int, ctx: Ctx) -> Turns:
        from luthier.engine.turns import Turns

        return Turns({t.name: len(t.rows) for t in tasks}, ctx.rng, steps, self.accumulate, self.temperature,
                     self.batches == "alike")

    def _objective(self, about: Mapping[str, Any]) -> Any:
        """What a task of a manifest minimises; rows whose choices differ in number are scaled one by one."""
        scale = "log" if self.scale == "log-classes" else "none"
        return {"cls": "classify", "number": "classify:problem=regression", "s2s": "supervised",
                "mc": f"choose:scale={scale},most={max(2, int(about.get('options', 2)))}",
                "span": f"find-span:scale={scale}"}[about["type"]]

    def _encoded(self, model: Model, render: Render, before: Callable[[], Forward], inputs: Mapping[str, Artifact],
                 ctx: Ctx) -> tuple[list[Task], dict[str, Encoded]]:
        tasks, encoded = super()._encoded(model, render, before, inputs, ctx)
        known = inputs["manifest"].meta["tasks"]
        for task in tasks:
            kind = known[task.name.partition(".")[2]]["type"]
            choices = {"cls": len(model.labels.get(task.name, ())), "s2s": model.vocabulary}.get(kind, 0)
            if self.scale == "log-classes" and choices:
                task.scale = scaled(choices)
        return tasks, encoded


def scaled(choices: int) -> float:
    """1 / log n: what the loss of a task with n possible answers is multiplied by. A guess among n then has the loss 1."""
    if choices < 2:
        raise UserError(f"{choices} possible answer(s) can't be scaled by their logarithm; a number is learned with type: "
                        "number.")
    return 1 / math.log(choices)
