"""read-jsonl: a user's own examples, one JSON object a line, in one of three formats.

=================  ======================================================  =============================
format             keys it needs                                           keys it may have
=================  ======================================================  =============================
question-answer    question, answer (text or list) or answers (list)       passage or context
prompt-completion  prompt, completion
text-label         text, label
=================  ======================================================  =============================

Each may have `id` and `source`; any further key is kept in the example's `meta`. Without `source`, examples whose
passage (or question, prompt, text) is nearly the same share a cluster, so that no split can part them.

When it helps: whenever examples exist already. Source: none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, SourceFile, Turn, question
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._shared import MEGABYTE, exact_key, near_clusters

SHOWN = 5
CONFLICT_SHARE = 0.2
# By format: groups of keys of which a row needs one each, and further keys that are read.
FORMATS: dict[str, tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]] = {
    "question-answer": ((("question",), ("answer", "answers")), ("passage", "context")),
    "prompt-completion": ((("prompt",), ("completion",)), ()),
    "text-label": ((("text",), ("label",)), ()),
}
_EXPECTED = "; ".join(f"{n}: {', '.join(' or '.join(g) for g in needs)}" for n, (needs, _) in FORMATS.items())
_SPLIT = "jq -c '.[]' FILE > FILE.jsonl"
_BOM = b"\xef\xbb\xbf"


@dataclass
class Summary:
    """What a look at every line of a file found."""

    format: str = ""
    rows: int = 0
    unused: dict[str, int] = field(default_factory=dict)
    answers: dict[bytes, bytes] = field(default_factory=dict)  # the first answer to each question, as hashes
    conflicts: int = 0
    problems: list[str] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)


class ReadJsonl(DataStep, name="read-jsonl"):
    """Examples from JSON lines: question-answer, prompt-completion or text-label."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")
    format: Literal["auto", "question-answer", "prompt-completion", "text-label"] = Field(
        "auto", description="keys that the rows have; auto: those of the first row")
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
            subjects = ((name, _subject(found.format, row)) for name, row in self._named(file) if not _source(row))
            clusters = near_clusters(subjects)
            for name, row in self._named(file):
                yield _example(found.format, name, row, _source(row) or clusters[name])

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
            raise UserError(f"{file.path} holds no rows. Each line is a JSON object; expected keys: {_EXPECTED}.")
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
        fitting = [n for n, (needs, _) in FORMATS.items() if all(any(k in row for k in g) for g in needs)]
        keys = ", ".join(row) or "none"
        stranger = ""
        if not found.format and not fitting:
            stranger = f"row {number}: keys found: {keys}. Expected keys: {_EXPECTED}"
        elif found.format and fitting and found.format not in fitting:
            stranger = (f"row {number} is {fitting[0]} (keys {keys}), but the file is read as {found.format}. "
                        "A file holds one format; keep each in a file of its own")
        if stranger and found.problems:
            return [stranger]
        if stranger:  # every row after this one would only repeat it
            raise UserError(f"{file.path} can't be used:\n  {stranger}.")
        found.format = found.format or fitting[0]
        needs, may = FORMATS[found.format]
        problems = [f"row {number}: no {' or '.join(group)}; keys found: {keys}"
                    for group in needs if not any(k in row for k in group)]
        for key in (k for group in needs for k in group if k in row):
            problems += [] if self.allow_unanswerable and row[key] == [] else _wrong(key, row[key], number)
        for key in may:
            if row.get(key) is not None and not isinstance(row[key], str):
                problems.append(f"row {number}: {key} is {_found(row[key])}; expected text")
        if all(row.get(key) for key in may) and may:
            problems.append(f"row {number}: it has {' and '.join(may)}; keep one")
        for key in ("id", "source"):
            if row.get(key) is not None and (isinstance(row[key], bool) or not isinstance(row[key], (str, int))):
                problems.append(f"row {number}: {key} is {_found(row[key])}; expected text or a whole number")
        name = _name(row, number, file)
        if found.ids.setdefault(name, number) != number:
            problems.append(f"row {number}: id '{name}' is already that of row {found.ids[name]}")
        if not problems:
            used = {k for group in needs for k in group} | {*may, "id", "source"}
            for key in row.keys() - used:
                found.unused[key] = found.unused.get(key, 0) + 1
            example = _example(found.format, name, row, "")
            asked = exact_key("\n".join(p.value for p in example.turns[0].parts))
            answer = exact_key(example.answer or str(example.label))
            found.conflicts += found.answers.setdefault(asked, answer) != answer
        return problems


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
        return None, f"line {number}: {_found(row)}; expected an object {{…}} with the keys {_EXPECTED}{hint}"
    return row, ""


def _found(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    shown = json.dumps(value, ensure_ascii=False)
    return f"{names.get(type(value), 'a number')} ({shown if len(shown) <= 40 else shown[:39] + '…'})"


def _wrong(key: str, value: Any, number: int) -> list[str]:
    """What is wrong with the value of a key that is needed."""
    if key == "label":
        if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
            return [f"row {number}: label is {_found(value)}; expected text or a number"]
        return [] if str(value).strip() else [f"row {number}: label is empty"]
    listed = key in ("answer", "answers") and isinstance(value, list)
    if listed and not value:
        return [f"row {number}: {key} is an empty list; 'allow_unanswerable: true' reads it as having no answer"]
    wanted = "text or a list of texts" if key in ("answer", "answers") else "text"
    for item in value if listed else [value]:
        if not isinstance(item, str):
            return [f"row {number}: {key} holds {_found(item)}; expected {wanted}"]
        if not item.strip():
            return [f"row {number}: {key} is empty"]
    return []


def _name(row: dict[str, Any], number: int, file: SourceFile) -> str:
    return f"{file.id}:{number}" if row.get("id") in (None, "") else str(row["id"])


def _source(row: dict[str, Any]) -> str:
    return "" if row.get("source") is None else str(row["source"])


def _subject(format: str, row: dict[str, Any]) -> str:
    """What an example is about: nearly equal subjects must not be parted by a split."""
    needs, may = FORMATS[format]
    return str(next(row[key] for key in (*may, needs[0][0]) if row.get(key)))


def _example(format: str, name: str, row: dict[str, Any], cluster: str) -> Example:
    needs, may = FORMATS[format]
    used = {k for group in needs for k in group} | {*may, "id", "source"}
    rest: dict[str, Any] = {
        "source": _source(row), "cluster": cluster,
        "meta": {k: v for k, v in row.items() if k not in used},
    }
    if format == "question-answer":
        values = (row[k] for k in ("answer", "answers") if k in row)
        first, *others = dict.fromkeys(a for v in values for a in (v if isinstance(v, list) else [v])) or [""]
        passage = row.get("passage") or row.get("context") or ""
        return question(name, row["question"], first, passage=passage, references=tuple(others), **rest)
    if format == "prompt-completion":
        turns = (Turn("user", (Part(row["prompt"], name="prompt"),)),
                 Turn("assistant", (Part(row["completion"]),), target=True))
        return Example(name, turns, task="completion", **rest)
    asked = Turn("user", (Part(row["text"], name="text"),))
    return Example(name, (asked,), task="classify", label=str(row["label"]), **rest)
