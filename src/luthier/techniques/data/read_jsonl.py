"""read-jsonl: a user's own examples, one JSON object a line, plain or gzipped.

`_formats.py` is the table of formats, `_rows.py` says what becomes of a row's other keys and of its cluster.

When it helps: whenever examples exist already. Source: none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import SourceFile
from luthier.techniques.data._files import Found, open_bytes
from luthier.techniques.data._formats import EXPECTED, found_value
from luthier.techniques.data._rows import RowReader
from luthier.techniques.data._shared import MEGABYTE

_SPLIT = "jq -c '.[]' FILE > FILE.jsonl"
_BOM = b"\xef\xbb\xbf"


class ReadJsonl(RowReader, name="read-jsonl"):
    """Examples from JSON lines in any format of the table."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")
    max_line_megabytes: float = Field(16.0, gt=0, description="a longer line is refused, in 1 000 000 bytes")

    def rows(self, file: SourceFile) -> Iterator[Found]:
        """Each line that is not blank; what is no object says why."""
        for number, line in self._lines(file):
            row, why = _parse(line, number)
            yield Found(number, row, why)

    def count_rows(self, file: SourceFile) -> int:
        """Lines that are not blank."""
        blank = _BOM + b" \t\r\n\v\f"  # a byte order mark may stand before the first line
        with open_bytes(Path(file.path)) as opened:
            return sum(1 for line in opened if line.strip(blank))

    def expected(self) -> str:
        return f"Each line is a JSON object; expected keys: {EXPECTED}."

    def _lines(self, file: SourceFile) -> Iterator[tuple[int, bytes]]:
        limit = int(self.max_line_megabytes * MEGABYTE)
        with open_bytes(Path(file.path)) as opened:
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
