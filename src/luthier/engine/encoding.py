"""Encoding: examples of a task to features, with a ledger of those that can't be used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError, nearest
from luthier.core.example import Example
from luthier.core.kinds import DroppedRow, Features, Objective
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.engine.mixing import Mixture

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
    """The examples that `INPUT.SUBSET` names, or with `INPUT.SUBSET:FILE` those that one of several files gave.

    Raises:
        UserError: no such input or subset, or no row of such a file.
    """
    source, _, part = name.partition(":")[0].partition(".")
    if source not in inputs:
        raise UserError(f"There is no input '{source}' for '{name}'. {nearest(source, inputs)}")
    if part not in inputs[source].subsets:
        raise UserError(f"'{name}': {source} has no subset '{part}'. {nearest(part, inputs[source].subsets)}")
    found = of_file(inputs[source].examples(part), name)
    first = next(found, None)
    if first is None and ":" in name:
        files = {str(e.meta["file"]) for e in inputs[source].examples(part) if "file" in e.meta}
        raise UserError(f"'{name}': {source}.{part} has no row of the file '{name.partition(':')[2]}'. "
                        f"{nearest(name.partition(':')[2], files)}")
    return found if first is None else chain([first], found)


def of_file(examples: Iterable[Example], name: str) -> Iterator[Example]:
    """The examples of the file that `INPUT.SUBSET:FILE` names; all of them without a file."""
    file = name.partition(":")[2]
    return (e for e in examples if not file or e.meta.get("file") == file)


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
        parts = {name: list(subset(inputs, name)) for name in spec.sources}
        examples = [e for part in parts.values() for e in part]
        if spec.objective.needs_head:
            labels = sorted({str(e.label) for e in examples if e.label is not None})
            if len(labels) < 2:
                raise UserError(f"{spec.name} has {len(labels)} label(s); a classifier needs at least 2.")
            model.labels[spec.name] = render.labels = labels
        encoded = {name: encode(part, spec.objective, render, ctx.rng) for name, part in parts.items()}
        for name, found in encoded.items():
            if not found.rows:
                why = found.ledger[0]["detail"] if found.ledger else "it is empty"
                raise UserError(f"No row of {name} can be trained on: {why}.")
            seen += found.seen
            ledger += found.ledger
        mixture = None
        if len(encoded) > 1:
            mixture = Mixture({n: len(f.rows) for n, f in encoded.items()}, spec.sources, spec.temperature)
        tasks.append(Task(spec.name, spec.objective, [r for f in encoded.values() for r in f.rows],
                          [i for f in encoded.values() for i in f.ids], spec.weight, mixture))
    if ledger:
        ctx.log(f"{len(ledger)} of {seen} rows left out (ledger.jsonl); first: {ledger[0]['id']}: "
                f"{ledger[0]['reason']}, {ledger[0]['detail']}")
    return tasks, ledger
