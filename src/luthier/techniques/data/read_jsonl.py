"""read-jsonl: a user's own examples, one JSON object a line: questions with answers, prompts with completions, texts
with labels, chats (`messages` or `conversations`) or raw texts. `_formats.py` is the table of formats.

Each may have `id` and `source`; any further key is kept in the example's `meta`. Without `source`, examples whose
passage (or question, prompt, text, words of the user) is nearly the same share a cluster, so that no split can part them.

When it helps: whenever examples exist already. Source: none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, SourceFile
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._formats import EXPECTED, FORMATS, Format, FormatName, Summary, found_value
from luthier.techniques.data._shared import MEGABYTE, exact_key, near_clusters

SHOWN = 5
CONFLICT_SHARE = 0.2
_SPLIT = "jq -c '.[]' FILE > FILE.jsonl"
_BOM = b"\xef\xbb\xbf"


class ReadJsonl(DataStep, name="read-jsonl"):
    """Examples from JSON lines in any format of the table."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")
    format: FormatName = Field("auto", description="keys that the rows have; auto: those of the first row")
    learn: Literal["every", "last"] = Field("every", description="which assistant messages of a chat are learned")
    max_line_megabytes: float = Field(16.0, gt=0, description="a longer line is refused, in 1 000 000 bytes")
    allow_unanswerable: bool = Field(False, description="an empty list of answers is a question without an answer")

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
            subjects = ((name, form.subject(row)) for name, row in self._named(file) if not _source(row))
            clusters = near_clusters(subjects)
            for name, row in self._named(file):
                yield self._example(form, name, row, _source(row) or clusters[name])

    def validate_file(self, file: SourceFile) -> Summary:
        """Look at every line without keeping any. Raises UserError with the first problems and how many there are."""
        found = Summary("" if self.format == "auto" else self.format)
        count = 0
        for number, line in self._lines(file):
            row, why = _parse(line, number)
            problems = [why] if row is None else self._check(row, number, found, file)
            count += len(problems)
            found.problems += problems[:SHOWN - len(found.problems)]
            found.rows += row is not None
        if count:
            more = f"\n  … and {count - SHOWN} more" if count > SHOWN else ""
            raise UserError(f"{file.path} can't be used:\n  " + "\n  ".join(found.problems) + more)
        if not found.rows:
            raise UserError(f"{file.path} holds no rows. Each line is a JSON object; expected keys: {EXPECTED}.")
        return found

    def _lines(self, file: SourceFile) -> Iterator[tuple[int, bytes]]:
        limit = int(self.max_line_megabytes * MEGABYTE)
        try:
            with Path(file.path).open("rb") as opened:
                number = 0
                while line := opened.readline(limit + 1):
                    number += 1
                    if number == 1:
                        line = line.removeprefix(_BOM)
                        if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                            raise UserError(f"{file.path} is UTF-16; JSON lines are UTF-8. Save it as UTF-8.")
                    if len(line) > limit and not line.endswith(b"\n"):
                        raise UserError(
                            f"{file.path}: line {number} is longer than {self.max_line_megabytes:g} MB "
                            "(max_line_megabytes). One example stands on each line; is the line end missing?")
                    if line.strip():
                        yield number, line
        except OSError as error:
            raise UserError(f"{file.path} can't be read: {error.strerror}.") from None

    def _named(self, file: SourceFile) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, line in self._lines(file):
            row = json.loads(line)
            yield _name(row, number, file), row

    def _check(self, row: dict[str, Any], number: int, found: Summary, file: SourceFile) -> list[str]:
        """What is wrong with one row; its share of the summary when nothing is."""
        stranger = self._stranger(row, number, found)
        if stranger and found.problems:
            return [stranger]
        if stranger:  # every row after this one would only repeat it
            raise UserError(f"{file.path} can't be used:\n  {stranger}.")
        form = FORMATS[found.format]
        keys = ", ".join(row) or "none"
        problems = [f"no {what}; keys found: {keys}" for what in form.missing(row)]
        if form.fits(row):
            problems += form.problems(row, vars(self))
        for key in ("id", "source"):
            if row.get(key) is not None and (isinstance(row[key], bool) or not isinstance(row[key], (str, int))):
                problems.append(f"{key} is {found_value(row[key])}; expected text or a whole number")
        name = _name(row, number, file)
        if found.ids.setdefault(name, number) != number:
            problems.append(f"id '{name}' is already that of row {found.ids[name]}")
        if not problems:
            for key in row.keys() - form.used:
                found.unused[key] = found.unused.get(key, 0) + 1
            example = self._example(form, name, row, "")
            asked = exact_key("\n".join(t.text for t in example.turns if not t.target))
            answer = exact_key(example.answer or str(example.label))
            found.conflicts += found.answers.setdefault(asked, answer) != answer
        return [f"row {number}: {problem}" for problem in problems]

    def _stranger(self, row: dict[str, Any], number: int, found: Summary) -> str:
        """Why a row is not of the file's format; the first row decides the format unless one is named."""
        fitting = [n for n, form in FORMATS.items() if form.fits(row)]
        keys = ", ".join(row) or "none"
        if not found.format and not fitting:
            return f"row {number}: keys found: {keys}. Expected keys: {EXPECTED}"
        if found.format and fitting and found.format not in fitting:
            return (f"row {number} is {fitting[0]} (keys {keys}), but the file is read as {found.format}. "
                    "A file holds one format; keep each in a file of its own")
        found.format = found.format or fitting[0]
        return ""

    def _example(self, form: Format, name: str, row: dict[str, Any], cluster: str) -> Example:
        meta = {k: v for k, v in row.items() if k not in form.used}
        return form.make(name, row, vars(self), {"source": _source(row), "cluster": cluster, "meta": meta})


def _parse(line: bytes, number: int) -> tuple[dict[str, Any] | None, str]:
    """The object on a line, or what is wrong with it."""
    try:
        text = line.decode("utf-8")
        row = json.loads(text)
        if b"\\u" in line:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        return None, f"line {number}, byte {error.start + 1}: not UTF-8 (0x{line[error.start]:02x}). Save it as UTF-8"
    except UnicodeEncodeError:
        return None, f"line {number}: it holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
    except json.JSONDecodeError as error:
        if number == 1 and text.strip() in ("[", "{"):
            return None, f"line 1: the JSON runs over several lines; write one object a line: {_SPLIT}"
        return None, f"line {number}, column {error.colno}: broken JSON: {error.msg}"
    except (ValueError, RecursionError) as error:
        return None, f"line {number}: JSON that can't be read: {error}"
    if not isinstance(row, dict):
        hint = f". To split a list: {_SPLIT}" if isinstance(row, list) else ""
        return None, f"line {number}: {found_value(row)}; expected an object {{…}} with the keys {EXPECTED}{hint}"
    return row, ""


def _name(row: dict[str, Any], number: int, file: SourceFile) -> str:
    return f"{file.id}:{number}" if row.get("id") in (None, "") else str(row["id"])


def _source(row: dict[str, Any]) -> str:
    return "" if row.get("source") is None else str(row["source"])
