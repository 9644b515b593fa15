"""Tables as text: cells between delimiters (CSV, TSV), and tokens with tags a line (CoNLL). Rows stream."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from luthier.core.errors import UserError
from luthier.techniques.data._files import Found, open_text

DELIMITERS = (",", ";", "\t", "|")
LOOK = 100
MOST_CHARACTERS = 16_000_000  # of a cell; a quote that is never closed must not take the whole file into memory
_TAG = re.compile(r"O|[BIELSU]-\S+")
_COLUMN = re.compile(r"[ \t]+")
csv.field_size_limit(max(csv.field_size_limit(), MOST_CHARACTERS))


class Dialect(NamedTuple):
    """How a table is written."""

    delimiter: str
    quotes: Literal["auto", "double", "none"]
    header: bool | tuple[str, ...]
    encoding: str


def cells(path: Path, dialect: Dialect) -> Iterator[Found]:
    """The rows of a CSV or TSV file: texts by column.

    Raises:
        UserError: a header with a column that has no name or the name of another; a quote that is not closed.
    """
    delimiter, quoted = _settled(path, dialect)
    names: Sequence[str] = dialect.header if isinstance(dialect.header, tuple) else ()
    first, number, line = True, 0, 0
    with open_text(path, dialect.encoding) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True,
                            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
        while True:
            line = reader.line_num + 1
            try:
                record = next(reader, None)
            except csv.Error as error:
                raise UserError(f"{path}: row {number + 1} (line {line}): {_csv_words(error)}") from None
            if record is None:
                return
            if not record:
                continue
            if first:
                first = False
                if dialect.header is True:
                    names = _header(record, path)
                    continue
                names = names or [str(n) for n in range(1, len(record) + 1)]
            number += 1
            if len(record) == len(names):
                yield Found(number, dict(zip(names, record, strict=True)), "", line)
            else:
                hint = "" if dialect.header is True else " (header)"
                yield Found(number, None, f"row {number} (line {line}): {len(record)} cells, but {len(names)} columns{hint}: "
                                          f"{', '.join(names)}. Is a cell with '{delimiter}' or a line end not in quotes?")


def looks_tagged(path: Path, encoding: str) -> bool:
    """Whether a file holds tokens with tags: the last of equally many columns is O or B-…, and lines are blank between."""
    with open_text(path, encoding) as file:
        lines = [line.rstrip("\r\n") for line in islice(file, LOOK)]
    told = [_COLUMN.split(line.strip()) for line in lines if line.strip() and not line.startswith("-DOCSTART-")]
    return (len(told) > 1 and all(len(c) > 1 and _TAG.fullmatch(c[-1]) for c in told)
            and (len(lines) < LOOK or any(not line.strip() for line in lines)))


def tagged(path: Path, encoding: str) -> Iterator[Found]:
    """Sentences of a tagged text: the first column of each line is a token, the last its tag."""
    tokens: list[str] = []
    tags: list[str] = []
    number = begins = 0
    why = ""
    with open_text(path, encoding) as file:
        for at, line in enumerate(file, 1):
            columns = _COLUMN.split(line.strip())
            if columns[0] in ("", "-DOCSTART-"):
                if tokens or why:
                    number += 1
                    yield Found(number, None if why else {"tokens": tokens, "tags": tags}, why, begins)
                tokens, tags, why = [], [], ""
                continue
            if not tokens:
                begins = at
            if len(columns) < 2:
                why = why or (f"row {number + 1} (line {at}): '{columns[0][:40]}' has no tag; expected a token, white space, "
                              "a tag")
            tokens.append(columns[0])
            tags.append(columns[-1])
    if tokens or why:
        yield Found(number + 1, None if why else {"tokens": tokens, "tags": tags}, why, begins)


def _header(record: list[str], path: Path) -> list[str]:
    names = [name.strip() for name in record]
    no_header = ". If the file has no header: header: false, and columns: {question: 1, answer: 2}"
    for n, name in enumerate(names):
        if not name:
            raise UserError(f"{path}: column {n + 1} has no name; columns: {', '.join(names)[:200]}{no_header}.")
        if name in names[:n]:
            raise UserError(f"{path}: the columns {names.index(name) + 1} and {n + 1} have the same name "
                            f"'{name[:80]}'{no_header}.")
    return names


def _settled(path: Path, dialect: Dialect) -> tuple[str, bool]:
    """The delimiter, and whether cells may be quoted: as asked, or as the first records show."""
    delimiter = dialect.delimiter
    if delimiter == "auto":
        with open_text(path, dialect.encoding) as file:
            lines = list(_some(file))
        widths = {d: [len(r) for r in _records(lines, d)] for d in DELIMITERS}
        delimiter = max(DELIMITERS, key=lambda d: _fit(widths[d]))
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise UserError(f"delimiter = {delimiter!r}: one character stands between cells, such as ',' or ';'.")
    if dialect.quotes != "auto":
        return delimiter, dialect.quotes == "double"
    if delimiter != "\t":
        return delimiter, True
    with open_text(path, dialect.encoding) as file:
        lines = list(_some(file))
    plain = [line.rstrip("\r\n").split("\t") for line in lines if line.strip("\r\n")]
    if len({len(cells) for cells in plain}) > 1:  # cells that go over lines, or hold tabs, must be held together
        return delimiter, len({len(record) for record in _records(lines, "\t")}) == 1
    begin = [cell for cells in plain for cell in cells if cell.startswith('"')]
    return delimiter, bool(begin) and all(len(c) > 1 and c.endswith('"') and '"' not in c[1:-1].replace('""', "")
                                          for c in begin)


def _some(file: Any) -> Iterator[str]:
    """The first lines, each of bounded length."""
    return (line for line in islice(iter(lambda: file.readline(MOST_CHARACTERS), ""), LOOK))


def _records(lines: list[str], delimiter: str) -> list[list[str]]:
    try:
        found = [r for r in csv.reader(lines, delimiter=delimiter) if r]
    except csv.Error:
        return []
    return found[:-1] if len(found) > 1 and len(lines) == LOOK else found  # the last one may be cut


def _fit(widths: list[int]) -> tuple[float, int]:
    """How well a delimiter explains the records: the share as wide as the header, then how wide that is."""
    if not widths or widths[0] < 2:
        return 0.0, 0
    return sum(w == widths[0] for w in widths) / len(widths), widths[0]


def _csv_words(error: csv.Error) -> str:
    said = str(error)
    if "unexpected end of data" in said:
        return "a quote is opened and never closed. A quote within a cell is written twice: \"\"; or name quotes: none."
    if "expected after" in said:
        return f"{said}. A quote within a cell is written twice: \"\"; or name quotes: none."
    if "field larger" in said:
        return f"a cell of more than {MOST_CHARACTERS} characters. Is a quote not closed?"
    return f"{said}."
