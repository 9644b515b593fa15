"""Encoding: examples of a task to features, with a ledger of those that can't be used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError, nearest
from luthier.core.example import Example
from luthier.core.kinds import DroppedRow, Features, Objective
from luthier.core.rng import Rng
from luthier.core.step import Ctx

if TYPE_CHECKING:
    from luthier.engine.loop import Task
    from luthier.engine.models import Model
    from luthier.engine.rendering import Render
    from luthier.engine.steps.fit import TaskSpec


@dataclass
class Encoded:
    """Rows as features: `ids[i]` belongs to `rows[i]`; `ledger` names the rows left out, `seen` counts all."""

    rows: list[Features] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    seen: int = 0


def subset(inputs: Mapping[str, Artifact], name: str) -> Iterable[Example]:
    """The examples that `INPUT.SUBSET` names.

    Raises:
        UserError: no such input or subset.
    """
    source, _, part = name.partition(".")
    if source not in inputs:
        raise UserError(f"There is no input '{source}' for '{name}'. {nearest(source, inputs)}")
    if part not in inputs[source].subsets:
        raise UserError(f"'{name}': {source} has no subset '{part}'. {nearest(part, inputs[source].subsets)}")
    return inputs[source].examples(part)


def encode(examples: Iterable[Example], objective: Objective, render: Render, rng: Rng) -> Encoded:
    """Features of every example that the objective can use; what an example draws depends on its id alone."""
    found = Encoded()
    for example in examples:
        found.seen += 1
        try:
            found.rows.append(objective.encode(example, render, rng.within(f"encode/{example.id}")))
            found.ids.append(example.id)
        except DroppedRow as drop:
            found.ledger.append({"id": drop.dropped.id, "reason": drop.dropped.reason, "detail": drop.dropped.detail})
    return found


def encode_tasks(specs: Sequence[TaskSpec], model: Model, render: Render, inputs: Mapping[str, Artifact], ctx: Ctx
                 ) -> tuple[list[Task], list[dict[str, Any]]]:
    """Every task with its rows, and the ledger over all of them.

    Raises:
        UserError: a label task with fewer than two labels, or a task that no row can be used for.
    """
    from luthier.engine.loop import Task

    tasks: list[Task] = []
    ledger: list[dict[str, Any]] = []
    seen = 0
    for spec in specs:
        examples = list(subset(inputs, spec.data))
        if spec.objective.needs_head:
            labels = sorted({str(e.label) for e in examples if e.label is not None})
            if len(labels) < 2:
                raise UserError(f"{spec.data} has {len(labels)} label(s); a classifier needs at least 2.")
            model.labels[spec.name] = render.labels = labels
        found = encode(examples, spec.objective, render, ctx.rng)
        if not found.rows:
            why = found.ledger[0]["detail"] if found.ledger else "it is empty"
            raise UserError(f"No row of {spec.data} can be trained on: {why}.")
        seen += found.seen
        ledger += found.ledger
        tasks.append(Task(spec.name, spec.objective, found.rows, found.ids, spec.weight))
    if ledger:
        ctx.log(f"{len(ledger)} of {seen} rows left out (ledger.jsonl); first: {ledger[0]['id']}: "
                f"{ledger[0]['reason']}, {ledger[0]['detail']}")
    return tasks, ledger
