"""read: a user's own examples, from a file to an `examples` artifact."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.component import Slot, build, named
from luthier.core.errors import UserError, nearest
from luthier.core.example import Dropped, Example, SourceFile
from luthier.core.finding import Finding, receipt
from luthier.core.identity import hash_file
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx, Step
from luthier.techniques.data._formats import FormatName, format_of_task

SUBSET = "all"
RAW_SUFFIXES = (".txt", ".md", ".markdown")
_BLANK = b"\xef\xbb\xbf \t\r\n\v\f"  # a byte order mark may stand before the first line


class Read(Step, name="read"):
    """Reads a user's examples; a file with any row that can't be used is refused."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False

    path: str = Field(description="file with one example a line")
    format: FormatName = Field("auto", description="keys that the rows have; auto: those of the first row")
    reader: Slot[DataStep] = Field(named("read-jsonl"), description="who reads the file; read-raw for .txt and .md")

    def check(self) -> None:
        """Refuse a file that is missing, of another kind, or with a row that can't be used."""
        path, suffixes = Path(self.path), getattr(self._by_suffix(), "suffixes", ())
        if not path.is_file():
            beside = [p.name for p in path.parent.glob("*") if p.suffix in suffixes] if path.parent.is_dir() else []
            what = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(f"path: {self.path} {what}. {nearest(path.name, beside) if beside else ''}".rstrip())
        if path.suffix.lower() not in suffixes:
            legal = ", ".join(dict.fromkeys((*suffixes, *RAW_SUFFIXES)))
            raise UserError(f"path: '{self.reader.info.name}' does not read {path.suffix or 'files without a suffix'} "
                            f"({self.path}). Legal: {legal}.")
        look = getattr(self._reader(), "validate_file", None)
        if look is not None:
            look(self._file())

    def found_format(self) -> str:
        """The format of the file's rows, every row checked; empty when its reader knows none."""
        self.check()
        look = getattr(self._reader(), "validate_file", None)
        return str(look(self._file()).format) if look is not None else ""

    def content(self) -> dict[str, Any]:
        """Hash of the file."""
        try:
            return {Path(self.path).name: hash_file(Path(self.path))}
        except OSError as error:
            raise UserError(f"path: {self.path} can't be read: {error.strerror}.") from None

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """The examples as the subset "all", with their format and, for classification, the sorted labels."""
        ledger: list[Dropped] = []
        labels: list[str] = []  # filled while the rows are written, hence before the artifact is sealed
        shutil.rmtree(ctx.folder / "examples", ignore_errors=True)  # of an attempt that was killed

        def rows() -> Iterator[Example]:
            seen: set[str] = set()
            for row in self._reader().apply(iter([self._file()]), ctx):
                if isinstance(row, Dropped):
                    ledger.append(row)
                    continue
                if row.label is not None:
                    seen.add(str(row.label))
                yield row
            labels.extend(sorted(seen))

        examples = rows()
        first = next(examples, None)
        if first is None:
            raise UserError(f"path: {self.path} holds no rows that can be used.")
        return write_examples(ctx.folder, {SUBSET: chain([first], examples)}, ledger, labels=labels,
                              format=format_of_task(first.task))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every row of the file is an example or in the ledger."""
        counted = getattr(self._reader(), "count", None)
        if counted is not None:
            texts = sum(len("".join(t.text.split())) for e in artifact.examples(SUBSET) for t in e.turns)
            return [receipt("characters", counted(self._file()), texts, unit="characters", evidence="examples",
                            detail="characters of the file and of its texts, white space left out")]
        with Path(self.path).open("rb") as file:
            found = sum(1 for line in file if line.strip(_BLANK))
        kept, left_out = sum(1 for _ in artifact.examples(SUBSET)), len(artifact.ledger())
        return [receipt("rows", found, kept + left_out, unit="rows", evidence="ledger.jsonl",
                        detail=f"{kept} examples + {left_out} in the ledger")]

    def _file(self) -> SourceFile:
        return SourceFile(Path(self.path).name, self.path)

    def _by_suffix(self) -> DataStep:
        """The reader; raw texts have one of their own, unless another was named."""
        raw = Path(self.path).suffix.lower() in RAW_SUFFIXES and self.reader.info.name == "read-jsonl"
        return build("data_step", "read-raw") if raw else self.reader

    def _reader(self) -> DataStep:
        reader = self._by_suffix()
        if self.format == "auto" or (self.format == "raw-text" and reader.info.name == "read-raw"):
            return reader
        if "format" not in type(reader).model_fields:
            raise UserError(f"format = {self.format!r}: '{reader.info.name}' has no formats. Leave format out.")
        return reader.model_copy(update={"format": self.format})
