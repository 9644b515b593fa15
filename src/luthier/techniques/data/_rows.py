"""Frame of the readers of a user's rows: whatever the container, rows are checked and become examples in one way.

A reader says what rows a file holds (`rows`); the frame finds their format, checks every row before any is used, and
gives clusters. A row may have `id` and `source`; a further key is kept in `meta`. Without `source`, rows about nearly the
same (passage, question, prompt, text, words of the user) share a cluster, so that no split can part them; in a file of
more than `near_rows` rows those about exactly the same do. A file is read row by row: 32 bytes a row stay in memory, and
below `near_rows` the hashes of what the rows are about.
"""

from __future__ import annotations

import ast
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError, nearest
from luthier.core.example import Dropped, Example, SourceFile
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._files import Found
from luthier.techniques.data._formats import (
    EXPECTED,
    FORMATS,
    KEYS,
    NESTED,
    Format,
    FormatName,
    Summary,
    found_value,
    nearest_format,
)
from luthier.techniques.data._pictures import located
from luthier.techniques.data._repeats import Repeats, hashed
from luthier.techniques.data._shared import exact_key, near_clusters, normalized

SHOWN = 5
CONFLICT_SHARE = 0.2


@dataclass
class _Looked:
    """What a look at every row has found so far."""

    summary: Summary
    ids: Repeats = field(default_factory=Repeats)  # number of each id
    asked: Repeats = field(default_factory=Repeats)  # hash of the answer to each question


class RowReader(DataStep):
    """Examples from a file of rows in any format of the table."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    texts_only: ClassVar[bool] = False  # cells are texts: lists and objects stand in them as JSON
    hint: ClassVar[str] = ""  # what else may be wrong where no format fits the first row
    format: FormatName = Field("auto", description="keys that the rows have; auto: those of the first row")
    columns: dict[str, str] = Field({}, description="the file's own name of a key, such as {question: q, answer: a}")
    learn: Literal["every", "last"] = Field("every", description="which assistant messages of a chat are learned")
    allow_unanswerable: bool = Field(False, description="an empty list of answers is a question without an answer")
    bad_rows: Literal["refuse", "drop"] = Field("refuse", description="a row that can't be used: refuse the file, or leave "
                                                                      "out the row and write it to the ledger")
    near_rows: int = Field(50_000, ge=0, description="longer files get a cluster for each text, not for nearly equal ones")

    @abstractmethod
    def rows(self, file: SourceFile) -> Iterator[Found]:
        """The rows of a file, one after the other. Raises UserError for a file that can't be read on."""

    def count_rows(self, file: SourceFile) -> int:
        """How many rows the file holds."""
        return sum(1 for _ in self.rows(file))

    def apply(self, rows: Iterator[SourceFile], ctx: Ctx) -> Iterator[Example | Dropped]:
        """The examples of each file, in order. Raises UserError for a file with any row that can't be used."""
        for file in rows:
            found = self.validate_file(file)
            if found.unused:
                names = ", ".join(f"{key} ({count})" for key, count in sorted(found.unused.items()))
                ctx.log(f"{file.id}: kept, not used: {names}")
            if found.conflicts > CONFLICT_SHARE * found.rows:
                ctx.log(f"{file.id}: {found.conflicts} of {found.rows} rows repeat a question with another answer")
            form = FORMATS[found.format]
            clusters: dict[str, str] | None = None
            if found.rows <= self.near_rows:
                clusters = near_clusters((n, form.subject(row)) for n, row in self._named(file, found.bad) if not _source(row))
            else:
                ctx.log(f"{file.id}: {found.rows} rows, above near_rows={self.near_rows}: rows about the same text share a "
                        "cluster, rows about nearly the same do not")
            for number, why in found.bad.items():
                yield Dropped(f"{file.id}:{number}", "row can't be used", why)
            for name, row in self._named(file, found.bad):
                cluster = _source(row) or (clusters[name] if clusters is not None else _same(form.subject(row)))
                yield self._example(form, name, row, cluster)

    def validate_file(self, file: SourceFile) -> Summary:
        """Look at every row without keeping any. Raises UserError with the first problems and how many there are."""
        looked = _Looked(Summary("" if self.format == "auto" else self.format))
        found, count = looked.summary, 0
        for at in self._mapped(file):
            problems = [at.why] if at.row is None else self._check(at, looked, file)
            if problems and self.bad_rows == "drop":
                found.bad[at.number] = "; ".join(problems)
                continue
            count += len(problems)
            found.problems += problems[:SHOWN - len(found.problems)]
            found.rows += at.row is not None
        again = looked.ids.pairs()
        if self.bad_rows == "drop":
            found.bad |= {number: f"row {number}: its id is already that of row {other}" for number, other in again}
            found.rows -= len(again)
        else:
            count += len(again)
            found.problems += self._repeated(again[:SHOWN - len(found.problems)], file)
        if count:
            more = f"\n  … and {count - SHOWN} more" if count > SHOWN else ""
            raise UserError(f"{file.path} can't be used:\n  " + "\n  ".join(found.problems) + more)
        if not found.rows:
            first = f" First: {next(iter(found.bad.values()))}." if found.bad else ""
            raise UserError(f"{file.path} holds no rows{' that can be used' if found.bad else ''}.{first} {self.expected()}")
        found.conflicts = sum(answer != first for answer, first in looked.asked.pairs())
        return found

    def expected(self) -> str:
        """What a file of this kind should hold, for an error message."""
        return f"Expected keys of a row: {EXPECTED}."

    # --- rows under the names of the table ---------------------------------------------------------------------------

    def _mapped(self, file: SourceFile) -> Iterator[Found]:
        """The rows with their columns under the keys that the table knows."""
        for key in self.columns.keys() - KEYS:
            raise UserError(f"columns: no format reads the key '{key}'. {nearest(key, KEYS)}")
        theirs = set(self.columns.values())
        checked = False
        for at in self.rows(file):
            row = at.row
            if row is None or not (self.columns or self.texts_only):
                yield at if row is None else at._replace(row=located(row, Path(file.path).parent))
                continue
            if not checked:
                self._check_columns(row, file)
                checked = True
            rest = {k if k not in self.columns else f"{k} (column)": v for k, v in row.items() if k not in theirs}
            row = {**{key: row[name] for key, name in self.columns.items() if name in row}, **rest}
            if self.texts_only:
                row = {k: _structure(v) if k in NESTED and isinstance(v, str) else v for k, v in row.items()}
            yield at._replace(row=located(row, Path(file.path).parent))

    def _check_columns(self, row: dict[str, Any], file: SourceFile) -> None:
        for key, name in self.columns.items():
            if name not in row:
                raise UserError(f"columns: {file.path} has no column '{name}' for {key}; found: {', '.join(row)}. "
                                f"{nearest(name, row)}")

    def _named(self, file: SourceFile, bad: Mapping[int, str] = {}) -> Iterator[tuple[str, dict[str, Any]]]:
        for at in self._mapped(file):
            if at.row is not None and at.number not in bad:
                yield _name(at.row, at.number, file), at.row

    def _repeated(self, again: list[tuple[int, int]], file: SourceFile) -> list[str]:
        """Problems of rows whose id came before, each with its name, for which the file is read once more."""
        first = dict(again)
        last = max(first, default=0)
        rows = (at for at in self._mapped(file) if at.row is not None and at.number in first)
        named = {at.number: _name(at.row or {}, at.number, file) for at in islice(rows, len(first)) if at.number <= last}
        return [f"row {number}: id '{named[number]}' is already that of row {other}" for number, other in again]

    # --- checking one row --------------------------------------------------------------------------------------------

    def _check(self, at: Found, looked: _Looked, file: SourceFile) -> list[str]:
        """What is wrong with one row; its share of the summary when nothing is."""
        found, row = looked.summary, at.row or {}
        where = f"row {at.number}" + (f" (line {at.line})" if at.line not in (0, at.number) else "")
        stranger = self._stranger(row, where, found)
        if stranger and found.problems:
            return [stranger]
        if stranger:  # every row after this one would only repeat it
            raise UserError(f"{file.path} can't be used:\n  {stranger}.")
        form = FORMATS[found.format]
        keys = ", ".join(row) or "none"
        problems = [f"no {what}; keys found: {keys}" for what in form.missing(row)]
        if not problems:
            problems = form.problems(row, vars(self))
        for key in ("id", "source"):
            if row.get(key) is not None and (isinstance(row[key], bool) or not isinstance(row[key], (str, int))):
                problems.append(f"{key} is {found_value(row[key])}; expected text or a whole number")
        name = _name(row, at.number, file)
        if not problems or self.bad_rows == "refuse":
            looked.ids.add(name.encode("utf-8", "surrogatepass"), at.number)
        if not problems:
            for key in row.keys() - form.used:
                found.unused[key] = found.unused.get(key, 0) + 1
            example = self._example(form, name, row, "")
            if example.rejected is None:  # several pairs of answers to one prompt don't contradict each other
                asked = exact_key("\n".join(t.text for t in example.turns if not t.target))
                looked.asked.add(asked, hashed(exact_key(example.answer or str(example.label))))
        return [f"{where}: {problem}" for problem in problems]

    def _stranger(self, row: dict[str, Any], where: str, found: Summary) -> str:
        """Why a row is not of the file's format; the first row decides the format unless one is named."""
        fitting = [n for n, form in FORMATS.items() if form.fits(row)]
        keys = ", ".join(row) or "none"
        if not found.format and not fitting:
            return (f"{where}: keys found: {keys}.{nearest_format(row)} Expected keys: {EXPECTED}. Other names are mapped "
                    f"with columns, such as {{question: q, answer: a}}{self.hint}")
        if found.format and fitting and found.format not in fitting:
            return (f"{where} is {fitting[0]} (keys {keys}), but the file is read as {found.format}. "
                    "A file holds one format; keep each in a file of its own")
        found.format = found.format or fitting[0]
        return ""

    def _example(self, form: Format, name: str, row: dict[str, Any], cluster: str) -> Example:
        meta = {k: v for k, v in row.items() if k not in form.used}
        return form.make(name, row, vars(self), {"source": _source(row), "cluster": cluster, "meta": meta})


def _structure(text: str) -> Any:
    """A cell that holds a list or an object, as JSON or as Python writes it; any other cell as it is."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _same(subject: str) -> str:
    """The cluster of all rows about this text."""
    return f"{hashed(normalized(subject).encode('utf-8', 'surrogatepass')):016x}"


def _name(row: dict[str, Any], number: int, file: SourceFile) -> str:
    return f"{file.id}:{number}" if row.get("id") in (None, "") else str(row["id"])


def _source(row: dict[str, Any]) -> str:
    return "" if row.get("source") is None else str(row["source"])
