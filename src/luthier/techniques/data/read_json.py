"""read-json: a user's own examples in one JSON text, plain or gzipped.

The text is a list of objects, an object with such a list under `data`, `rows` or `examples`, an object of objects by id,
or several objects one after the other. An element with `paragraphs` is an article in the layout of SQuAD's own files,
and each of its questions is a row. The text is parsed element by element; one element is in memory.

When it helps: data sets that are published as one JSON file. Source: RFC 8259; Rajpurkar et al. 2016 for the articles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, TextIO

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import SourceFile
from luthier.techniques.data._files import Found, open_text
from luthier.techniques.data._formats import found_value
from luthier.techniques.data._rows import RowReader
from luthier.techniques.data._shared import MEGABYTE
from luthier.techniques.data._spans import flat_rows

LISTS = ("data", "rows", "examples")
_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")


class ReadJson(RowReader, name="read-json"):
    """Examples from a JSON list, an object of them, or files in SQuAD's layout."""

    suffixes: ClassVar[tuple[str, ...]] = (".json",)
    max_element_megabytes: float = Field(64.0, gt=0, description="a longer element is refused, in 1 000 000 characters")

    def rows(self, file: SourceFile) -> Iterator[Found]:
        """The elements in order; those with `paragraphs` question by question."""
        number = 0
        with open_text(Path(file.path)) as opened:
            values = _Values(opened, file.path, int(self.max_element_megabytes * MEGABYTE))
            for line, element in _elements(values):
                if not isinstance(element, dict):
                    number += 1
                    yield Found(number, None, f"row {number} (line {line}): {found_value(element)}; expected an object")
                    continue
                article = "paragraphs" in element
                for row, why in flat_rows(element) if article else [(element, "")]:
                    number += 1
                    yield Found(number, row, f"row {number} (article at line {line}): {why}" if why else "", line)


def _elements(values: _Values) -> Iterator[tuple[int, Any]]:
    """(line, element) of everything in the text that may be a row."""
    while (opening := values.peek()) in ("[", "{"):
        if opening == "[":
            yield from _list(values)
        else:
            yield from _object(values)
    if opening:
        raise values.wrong("expected a list or an object")


def _list(values: _Values) -> Iterator[tuple[int, Any]]:
    values.take("[")
    while values.peek() != "]":
        line, element = values.line, values.value()
        yield line, element
        if values.peek() != "]":
            values.take(",")
            if values.peek() == "]":
                raise values.wrong("a value is missing after ','")
    values.take("]")


def _object(values: _Values) -> Iterator[tuple[int, Any]]:
    """The rows that an object holds by a list or by id; the object itself where it holds neither."""
    line, inside = values.line, False
    kept: dict[str, Any] = {}
    values.take("{")
    while values.peek() != "}":
        key = values.value()
        if not isinstance(key, str):
            raise values.wrong("expected a name in quotes")
        values.take(":")
        opening = values.peek()
        if key in LISTS and opening == "[":
            inside = True
            yield from _list(values)
        elif opening == "{" and not kept and key not in LISTS:
            inside = True
            at, element = values.line, values.value()
            yield at, {"id": key, **element} if "paragraphs" not in element else element
        else:
            kept[key] = values.value()
        if values.peek() != "}":
            values.take(",")
    values.take("}")
    if not inside:
        yield line, kept


class _Values:
    """Values of a JSON text, one after the other; holds no more of it than the value that is being read."""

    def __init__(self, file: TextIO, name: str, limit: int) -> None:
        self.file, self.name, self.limit = file, name, limit
        self.text, self.at, self.ended = "", 0, False
        self.line = 1  # of what `peek` last saw
        self._left = 0  # characters of that line which are no longer held
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            end = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            self.line += self.text.count("\n", self.at, end)
            self.at = end
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more(_CHUNK):
                return ""

    def take(self, sign: str) -> None:
        """Go past a sign. Raises UserError if another one stands there."""
        found = self.peek()
        if found != sign:
            raise self.wrong(f"expected '{sign}', found {found!r}" if found else f"the file ends; expected '{sign}'")
        self.at += 1

    def value(self) -> Any:
        """The next value. Raises UserError where there is none."""
        if not self.peek():
            raise self.wrong("the file ends; expected a value")
        while True:
            try:
                found, end = self._decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                ahead = error.pos - self.at  # refilling moves what is held
                if self._refill():
                    continue
                raise self.wrong(error.msg, self.at + ahead) from None
            except (ValueError, RecursionError) as error:
                raise self.wrong(f"a value that can't be read: {error}") from None
            if end == len(self.text) and self._refill():
                continue  # a number may go on
            self._check_signs(found, end)
            self.line += self.text.count("\n", self.at, end)
            self.at = end
            return found

    def wrong(self, what: str, place: int | None = None) -> UserError:
        """The error at a place of the text."""
        place = self.at if place is None else place
        line = self.line + self.text.count("\n", self.at, place)
        end = self.text.rfind("\n", 0, place)
        column = place - end if end >= 0 else self._left + place + 1
        return UserError(f"{self.name}: line {line}, column {column}: broken JSON: {what}.")

    def _check_signs(self, found: Any, end: int) -> None:
        if "\\u" in self.text[self.at:end]:
            try:
                json.dumps(found, ensure_ascii=False).encode("utf-8")
            except UnicodeEncodeError:
                raise self.wrong("it holds half of a surrogate pair (\\ud800 to \\udfff), which is no character") from None

    def _refill(self) -> bool:
        """As much again as is held, so that a long value is parsed a few times and not once a chunk."""
        if len(self.text) - self.at > self.limit:
            raise self.wrong(f"an element of more than {self.limit / MEGABYTE:g} million characters "
                             "(max_element_megabytes)")
        return self._more(max(_CHUNK, len(self.text) - self.at))

    def _more(self, characters: int) -> bool:
        if self.ended:
            return False
        read = self.file.read(characters)
        self.ended = not read
        end = self.text.rfind("\n", 0, self.at)
        self._left = self.at - end - 1 if end >= 0 else self._left + self.at
        self.text, self.at = self.text[self.at:] + read, 0
        return bool(read)
