"""read-raw: plain text and Markdown files as texts to be read on, for continued pretraining.

A file is cut at blank lines into texts of about `text_characters` characters, so that some can be kept out of training
and scored. Nothing is taken away or changed: the texts joined by blank lines are the file. A heading of Markdown stays
with what follows it.

When it helps: documents without questions or labels. Source: none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, SourceFile
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._files import GZIP, open_bytes
from luthier.techniques.data._formats import Summary, raw_text
from luthier.techniques.data._shared import MEGABYTE, NotRead, decode, read_bytes

_BLANK = re.compile(r"\n(?:[ \t]*\n)+")
_HEADING = re.compile(r"#{1,6} [^\n]*")


class ReadRaw(DataStep, name="read-raw"):
    """Texts of a plain text or Markdown file, to be read on."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".md", ".markdown")
    text_characters: int = Field(2000, ge=1, description="a text is closed at the first blank line after so many characters")
    max_megabytes: float = Field(64.0, gt=0, description="larger files are refused, in 1 000 000 bytes")

    def apply(self, rows: Iterator[SourceFile], ctx: Ctx) -> Iterator[Example | Dropped]:
        """The texts of each file, in order. Raises UserError for a file that holds no text."""
        for file in rows:
            for number, text in enumerate(self.texts(file), 1):
                name = f"{file.id}:{number}"
                yield raw_text(name, text, source=file.id, cluster=name)

    def texts(self, file: SourceFile) -> list[str]:
        """The texts of one file, each at least `text_characters` long but the last."""
        paragraphs = [p for p in _BLANK.split(self._read(file)) if p.strip()]
        found: list[list[str]] = [[]]
        for paragraph in paragraphs:
            last = found[-1]
            if last and sum(map(len, last)) >= self.text_characters and not _HEADING.fullmatch(last[-1]):
                found.append([paragraph])
            else:
                last.append(paragraph)
        return ["\n\n".join(part) for part in found]

    def validate_file(self, file: SourceFile) -> Summary:
        """Refuse a file that is no text. Raises UserError."""
        return Summary("raw-text", len(self.texts(file)))

    def count(self, file: SourceFile) -> int:
        """Characters of the file that are not white space: what the texts must hold together."""
        return len("".join(self._read(file).split()))

    def _read(self, file: SourceFile) -> str:
        try:
            if Path(file.path).suffix.lower() == GZIP:
                return decode(self._unpacked(Path(file.path)))[0].strip("\n")
            return decode(read_bytes(file, self.max_megabytes))[0].strip("\n")
        except NotRead as error:
            raise UserError(f"{file.path} can't be read as text: {error.reason}, {error.detail}.") from None

    def _unpacked(self, path: Path) -> bytes:
        limit = int(self.max_megabytes * MEGABYTE)
        with open_bytes(path) as packed:
            data = packed.read(limit + 1)
        if len(data) > limit:
            raise NotRead("too large", f"unpacked more than max_megabytes={self.max_megabytes:g}")
        if not data.strip():
            raise NotRead("empty", f"{len(data)} bytes")
        return data
