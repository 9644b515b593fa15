"""Encoding: examples of a task to features, with a ledger of those that can't be used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
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
    from luthier.engine.steps.specs import TaskSpec


@dataclass
class Encoded:
    """Rows as features: `ids[i]` belongs to `rows[i]`.

    `seen` counts the examples, `used` those that became a row or several; `ledger` names those left out, and with
    `kept: true` those that were shortened or divided.
    """

    rows: list[Features] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    seen: int = 0
    used: int = 0

    @property
    def dropped(self) -> list[dict[str, Any]]:
        """The part of the ledger that names examples left out."""
        return [entry for entry in self.ledger if not entry.get("kept")]


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
    found, before = Encoded(), len(render.cuts)
    for example in examples:
        found.seen += 1
        try:
            made = objective.rows(example, render, rng.within(f"encode/{example.id}"))
            found.rows += made
            found.ids += [example.id] if len(made) == 1 else [f"{example.id}/{n}" for n in range(1, len(made) + 1)]
            found.used += 1
        except DroppedRow as drop:
            found.ledger.append({"id": drop.dropped.id, "reason": drop.dropped.reason, "detail": drop.dropped.detail})
    gone = {entry["id"] for entry in found.ledger}
    found.ledger += [{"id": cut.id, "reason": cut.reason, "detail": cut.detail, "tokens_cut": cut.tokens, "kept": True}
                     for cut in render.cuts[before:] if cut.id not in gone]
    return found


def encode_tasks(specs: Sequence[TaskSpec], model: Model, render: Render, inputs: Mapping[str, Artifact], ctx: Ctx
                 ) -> tuple[list[Task], dict[str, Encoded]]:
    """Every task with its rows, and what became of the examples of each.

    Raises:
        UserError: a label task with fewer than two labels, or a task that no row can be used for.
    """
    from luthier.engine.loop import Task

    tasks: list[Task] = []
    encoded: dict[str, Encoded] = {}
    for spec in specs:
        parts = {name: list(subset(inputs, name)) for name in spec.sources}
        examples = [e for part in parts.values() for e in part]
        if spec.objective.needs_head:
            labels = spec.objective.labels(examples)
            if len(labels) == 1 or (not labels and not spec.objective.learns_numbers):
                raise UserError(f"{spec.name} has {len(labels)} label(s); a classifier needs at least 2.")
            model.labels[spec.name] = render.labels = labels
        each = {name: encode(part, spec.objective, render, ctx.rng) for name, part in parts.items()}
        for name, found in each.items():
            if not found.rows:
                why = found.ledger[0]["detail"] if found.ledger else "it is empty"
                raise UserError(f"No row of {name} can be trained on: {why}.")
        mixture = None
        if len(each) > 1:
            mixture = Mixture({n: len(e.rows) for n, e in each.items()}, spec.sources, spec.temperature)
        joined = encoded[spec.name] = _joined(list(each.values()))
        tasks.append(Task(spec.name, spec.objective, joined.rows, joined.ids, spec.weight, mixture))
    _say(encoded, ctx)
    for task in tasks:
        for text in task.objective.remarks(task.rows):
            ctx.log(text)
    return tasks, encoded


def further_rows(parts: Iterable[Any], first: Task, render: Render, inputs: Mapping[str, Artifact], ctx: Ctx
                 ) -> dict[str, Task]:
    """Rows that methods and regularizers draw from (`streams`), as the first task reads its own, by name.

    Raises:
        UserError: no such input or subset, or no row of it can be used.
    """
    from luthier.engine.loop import Task

    found = {}
    for part in parts:
        for name, source in part.streams().items():
            data = encode(subset(inputs, source), first.objective, render, ctx.rng)
            if not data.rows:
                why = data.ledger[0]["detail"] if data.ledger else "it is empty"
                raise UserError(f"{part.info.name}: no row of {source} ({name}) can be used: {why}.")
            found[name] = Task(first.name, first.objective, data.rows, data.ids)
    return found


def _joined(parts: Sequence[Encoded]) -> Encoded:
    """What became of several data sets, one after another."""
    return Encoded([r for p in parts for r in p.rows], [i for p in parts for i in p.ids],
                   [entry for p in parts for entry in p.ledger], sum(p.seen for p in parts), sum(p.used for p in parts))


def counted(encoded: Iterable[Encoded]) -> dict[str, int]:
    """What an artifact's record says: examples dropped, examples shortened or divided, tokens cut from those."""
    all_of = list(encoded)
    cut = [entry for e in all_of for entry in e.ledger if entry.get("kept")]
    return {"dropped": sum(len(e.dropped) for e in all_of),
            **({"shortened": len(cut), "tokens_cut": sum(entry["tokens_cut"] for entry in cut)} if cut else {})}


def _say(encoded: Mapping[str, Encoded], ctx: Ctx) -> None:
    """Log how many examples were left out, shortened or divided, and the first of each."""
    seen = sum(e.seen for e in encoded.values())
    ledger = [entry for e in encoded.values() for entry in e.ledger]
    for kept, what in ((False, "left out"), (True, "shortened or divided")):
        some = [entry for entry in ledger if bool(entry.get("kept")) is kept]
        if some:
            cut = f", {sum(e['tokens_cut'] for e in some)} tokens cut" if kept else ""
            first = some[0]["detail"] if kept else f"{some[0]['reason']}, {some[0]['detail']}"
            ctx.log(f"{len(some)} of {seen} rows {what}{cut} (ledger.jsonl); first: {some[0]['id']}: {first}")


def chats(examples: Iterable[Example]) -> bool:
    """Whether examples are conversations: the first one tells, since a file holds one format."""
    return any(example.spoken for example in islice(examples, 1))
