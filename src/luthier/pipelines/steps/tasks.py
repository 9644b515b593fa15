"""tasks: a manifest of labelled data sets, read as one `examples` artifact with a subset for each.

    - {name: topics, type: cls, train: topics.jsonl, num_labels: 4}
    - {name: why, type: mc, train: why.csv, fields: {question: q, choices: options}}

=======  =====================================================================  ===============================
type     what is learned                                                        rows (docs/rows.md)
=======  =====================================================================  ===============================
cls      the label of a text, or of two                                         text-label, pair-label
mc       the right one of several options                                       multiple-choice
span     where an answer stands in its passage                                  squad, question-answer
s2s      a text                                                                 any that `supervised` learns
number   a number                                                               text-label, pair-score
=======  =====================================================================  ===============================

`train` is a path relative to the manifest, `fields` the file's own names of keys. With an input `target` (rows that come
divided) its test rows are looked for among the tasks' rows: a task that holds some is named in the log and in the record.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example
from luthier.core.finding import Finding, receipt
from luthier.core.identity import hash_file
from luthier.core.step import Ctx, Step
from luthier.pipelines.steps.own_splits import TEST, asked
from luthier.pipelines.steps.read import Read
from luthier.techniques.data._formats import FORMATS

# The formats that a type of task is read from.
READS = {"cls": ("text-label", "pair-label"), "mc": ("multiple-choice",), "span": ("squad", "question-answer"),
         "s2s": tuple(name for name, form in FORMATS.items() if form.learned_by == "supervised"),
         "number": ("text-label", "pair-score")}


class TaskRow(BaseModel):
    """One task of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    type: Literal["cls", "mc", "span", "s2s", "number"]
    train: str
    fields: dict[str, str] = {}
    num_labels: int | None = Field(None, ge=1)


class Tasks(Step, name="tasks"):
    """Read a manifest of tasks and their rows; any row that can't be used is named with its task."""

    inputs: ClassVar[dict[str, str]] = {"target?": "examples"}
    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    path: str = Field(description="the manifest: a YAML file with a list of tasks (name, type, train, fields, num_labels)")

    def check(self) -> None:
        """Refuse what is wrong with the manifest or with any file of it."""
        for task in self.read():
            self._format(task)

    def content(self) -> dict[str, Any]:
        """Hashes of the manifest and of the files that it names."""
        return {"manifest": hash_file(Path(self.path)),
                **{f"{t.name}/{name}": found for t in self.read() for name, found in self._reader(t).content().items()}}

    def read(self) -> list[TaskRow]:
        """The tasks. Raises UserError with the number and the field of what is wrong."""
        import yaml

        path = Path(self.path)
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"path: the manifest {self.path} can't be read: {error.strerror}.") from None
        except yaml.YAMLError as error:
            raise UserError(f"path: {self.path} is not YAML: {error}") from None
        listed = found.get("tasks") if isinstance(found, dict) else found
        if not isinstance(listed, list) or not listed or not all(isinstance(row, dict) for row in listed):
            raise UserError(f"path: {self.path} holds no list of tasks. Write one a line: - {{name: topics, type: cls, train: "
                            "topics.jsonl}.")
        tasks = [self._task(n, row) for n, row in enumerate(listed, 1)]
        names = [t.name for t in tasks]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise UserError(f"{self.path}: two tasks are called '{twice}'. Give each a name of its own.")
        return tasks

    def _task(self, number: int, row: Mapping[str, Any]) -> TaskRow:
        where = f"{self.path}: task {number} ({row.get('name', 'without a name')})"
        try:
            task = TaskRow(**row)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            legal = "; legal keys: name, type, train, fields, num_labels" if first["type"] == "extra_forbidden" else ""
            raise UserError(f"{where}: {field} = {first.get('input')!r}: {first['msg']}{legal}.") from None
        if task.num_labels == 1:
            raise UserError(f"{where}: num_labels = 1, and log 1 = 0 can't scale a loss. A number that is told of a text is "
                            "learned with type: number.")
        if task.num_labels is not None and task.type != "cls":
            raise UserError(f"{where}: num_labels = {task.num_labels} is for type: cls; this is {task.type}. Leave it out.")
        return task

    def _reader(self, task: TaskRow) -> Read:
        return Read(path=str(Path(self.path).parent / task.train), columns=task.fields)

    def _format(self, task: TaskRow) -> str:
        """The format of a task's rows, which its type reads."""
        try:
            found = self._reader(task).found_format()
        except UserError as error:
            raise UserError(f"Task '{task.name}': {error}") from None
        if found not in READS[task.type]:
            fits = next((t for t, formats in READS.items() if found in formats), "")
            raise UserError(f"Task '{task.name}' (type: {task.type}) has {found or 'unknown'} rows; {task.type} reads "
                            f"{', '.join(READS[task.type])}." + (f" Rows like these are type: {fits}." if fits else ""))
        return found

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """A subset each task; `tasks` in the record says what they are."""
        shutil.rmtree(ctx.folder / "examples", ignore_errors=True)  # of an attempt that was killed
        tests = {asked(e) for name in TEST if "target" in inputs and name in inputs["target"].subsets
                 for e in inputs["target"].examples(name)}
        about: dict[str, dict[str, Any]] = {}
        rows: dict[str, list[Example]] = {}
        ledger: list[Dropped] = []
        for task in self.read():
            reader = self._reader(task)
            own = [row for _, one in reader._parts() for row in one._reader().apply(iter([one._file()]), ctx)]
            ledger += [r for r in own if isinstance(r, Dropped)]
            rows[task.name] = kept = [r for r in own if isinstance(r, Example)]
            about[task.name] = {"type": task.type, "rows": len(kept), "format": self._format(task), **facts(task, kept)}
            seen = [e.id for e in kept if tests and asked(e) in tests]
            if seen:
                about[task.name]["contaminated"] = len(seen)
                ctx.log(f"warning: contamination: task '{task.name}' holds {len(seen)} of the target's test rows (first: "
                        f"{seen[0]}); what is measured there says little. Leave the task or these rows out")
        return write_examples(ctx.folder, rows, ledger, tasks=about)

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every row of every file is an example or in the ledger."""
        found = sum(one._reader().count_rows(one._file()) for task in self.read()  # type: ignore[attr-defined]
                    for _, one in self._reader(task)._parts())
        kept = sum(1 for name in artifact.subsets for _ in artifact.examples(name))
        return [receipt("tasks/rows", found, kept + len(artifact.ledger()), unit="rows", evidence="ledger.jsonl")]


def facts(task: TaskRow, rows: Iterable[Example]) -> dict[str, Any]:
    """What a task chooses from: the number of its labels, or the most options of a row.

    Raises:
        UserError: a label out of range, more labels than `num_labels`, or a number that is none.
    """
    if task.type == "mc":
        return {"options": max((len(e.meta["options"]) for e in rows), default=2)}
    if task.type == "cls":
        return {"labels": _labels(task, rows)}
    return {}


def _labels(task: TaskRow, rows: Iterable[Example]) -> int:
    seen: dict[str, None] = {}
    for e in rows:
        said = str(e.label)
        seen[said] = None
        most = task.num_labels
        if most is None:
            continue
        number = said.lstrip("-").isdecimal()
        if (number and not 0 <= int(said) < most) or (not number and len(seen) > most):
            legal = f"0 to {most - 1}" if number else ", ".join(list(seen)[:most])
            raise UserError(f"Task '{task.name}', row {e.id}: label = {said!r} is out of range; legal with num_labels = "
                            f"{most}: {legal}.")
    if len(seen) < 2:
        raise UserError(f"Task '{task.name}' has {len(seen)} label(s); a classifier needs at least 2. A number is learned with "
                        "type: number.")
    return len(seen)
