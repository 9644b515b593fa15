"""read: a user's own examples, from a file (or a saved dataset) to an `examples` artifact.

Who reads a file follows from its suffix, unless a reader is named. A saved dataset with splits keeps them: its subsets
have their names. Everything else is the subset "all".
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.component import Slot, build, named
from luthier.core.errors import UserError, nearest
from luthier.core.example import Dropped, Example, SourceFile
from luthier.core.files import read_json
from luthier.core.finding import Finding, receipt
from luthier.core.identity import hash_file
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx, Step
from luthier.techniques.data._columns import files_of
from luthier.techniques.data._files import FOLDER, SHARDS, SPLITS, suffix_of
from luthier.techniques.data._formats import FormatName

SUBSET = "all"
READERS = ("read-jsonl", "read-json", "read-table", "read-raw", "read-faq")
TEXTS = ("read-raw", "read-faq")  # what these read are documents as well


class Read(Step, name="read"):
    """Reads a user's examples; a file with any row that can't be used is refused."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False

    path: str = Field(description="file of rows: JSON lines, JSON, CSV, TSV, Parquet, Arrow, CoNLL, text; or a folder of "
                                  "Parquet files, or a saved dataset")
    also: tuple[str, ...] = Field((), description="further files of the same format; each row's `meta` then names its file")
    format: FormatName = Field("auto", description="keys that the rows have; auto: those of the first row")
    columns: dict[str, str] = Field({}, description="the file's own name of a key, such as {question: q, answer: a}")
    reader: Slot[DataStep] = Field(named("read-jsonl"), description="who reads the file; the default is replaced by who "
                                                                    "knows its suffix")

    def check(self) -> None:
        """Refuse a file that is missing, of another kind, or with a row that can't be used."""
        self.found_format()

    def found_format(self) -> str:
        """The format of the rows, every row checked; empty when their reader knows none."""
        parts = self._parts()
        formats = {one.path: one._checked() for _, one in parts}
        names = [Path(p).name for p in formats]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice or len(formats) < len(parts):
            raise UserError(f"Two of the files are called {twice or names[0]}, and their rows could not be told apart. "
                            "Name each file once, by a name of its own.")
        first, *others = formats
        strange = next((p for p in others if formats[p] != formats[first]), None)
        if strange:
            raise UserError(f"{strange} holds {formats[strange]} rows, {first} {formats[first]} rows. Files that are read "
                            "together have one format.")
        return formats[first]

    def _checked(self) -> str:
        """The format of this one file, every row checked; empty when its reader knows none."""
        path, suffixes = Path(self.path), getattr(self._by_suffix(), "suffixes", ())
        suffix = suffix_of(path)
        if not path.is_file() and suffix not in (FOLDER, SHARDS):
            beside = [p.name for p in path.parent.glob("*") if suffix_of(p) in suffixes] if path.parent.is_dir() else []
            what = "is a folder" if path.is_dir() else "does not exist"
            raise UserError(f"path: {self.path} {what}. {nearest(path.name, beside) if beside else ''}".rstrip())
        if suffix not in suffixes and getattr(self.reader, "kind", "auto") == "auto":
            legal = ", ".join(dict.fromkeys((*suffixes, *_known())))
            raise UserError(f"path: '{self.reader.info.name}' does not read {suffix or 'files without a suffix'} "
                            f"({self.path}). Legal: {legal}; each also as .gz.")
        look = getattr(self._reader(), "validate_file", None)
        return str(look(self._file()).format) if look is not None else ""

    def _parts(self) -> list[tuple[str, Read]]:
        """(subset, one of these) for each file, or for each split of a saved dataset."""
        splits = splits_of(Path(self.path))
        if splits and self.also:
            raise UserError(f"{self.path} has splits ({', '.join(splits)}) and can't be read together with other files. "
                            "Name it alone, or one split: " + f"{self.path}/{splits[0]}")
        if splits:
            return [(n, self.model_copy(update={"path": str(Path(self.path, n)), "also": ()})) for n in splits]
        return [(SUBSET, self.model_copy(update={"path": path, "also": ()})) for path in (self.path, *self.also)]

    def content(self) -> dict[str, Any]:
        """Hash of each file."""
        found = {}
        for _, one in self._parts():
            try:
                for path in files_of(Path(one.path)):
                    inside = path.parent.name + "/" if Path(one.path).is_dir() else ""
                    found[inside + path.name] = hash_file(path)
            except OSError as error:
                raise UserError(f"path: {one.path} can't be read: {error.strerror}.") from None
        return found

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """The examples by subset, with their format and, for classification, the sorted labels."""
        ledger: list[Dropped] = []
        labels: list[str] = []  # filled while the rows are written, hence before the artifact is sealed
        shutil.rmtree(ctx.folder / "examples", ignore_errors=True)  # of an attempt that was killed
        seen: set[str] = set()
        ids: dict[str, str] = {}

        def rows(subset: str) -> Iterator[Example]:
            for name, one in self._parts():
                for row in one._reader().apply(iter([one._file()]), ctx) if name == subset else ():
                    if isinstance(row, Dropped):
                        ledger.append(row)
                        continue
                    if row.task == "classify":
                        seen.add(str(row.label))
                    yield one._of_file(row, ids) if self.also else row
            labels[:] = sorted(seen)

        format_ = self.found_format()
        subsets = {}
        for subset in dict.fromkeys(name for name, _ in self._parts()):
            examples = rows(subset)
            first = next(examples, None)
            if first is None:
                raise UserError(f"path: {self.path} holds no rows that can be used.")
            subsets[subset] = chain([first], examples)
        return write_examples(ctx.folder, subsets, ledger, labels=labels, format=format_)

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every row of the file is an example or in the ledger."""
        counted = getattr(self._reader(), "count", None)
        if counted is not None:
            texts = sum(len("".join(t.text.split())) for e in artifact.examples(SUBSET) for t in e.turns)
            found = sum(counted(one._file()) for _, one in self._parts())
            return [receipt("characters", found, texts, unit="characters", evidence="examples",
                            detail="characters of the file and of its texts, white space left out")]
        found = sum(one._reader().count_rows(one._file()) for _, one in self._parts())  # type: ignore[attr-defined]
        kept, left_out = sum(1 for name in artifact.subsets for _ in artifact.examples(name)), len(artifact.ledger())
        return [receipt("rows", found, kept + left_out, unit="rows", evidence="ledger.jsonl",
                        detail=f"{kept} examples + {left_out} in the ledger")]

    def _file(self) -> SourceFile:
        return SourceFile(Path(self.path).name, self.path)

    def _of_file(self, row: Example, ids: dict[str, str]) -> Example:
        """A row that says which file it is from. `ids` are those of all files so far."""
        name = Path(self.path).name
        if ids.setdefault(row.id, name) != name:
            raise UserError(f"id '{row.id}' is in {ids[row.id]} and in {name}; give each row an id of its own, or none.")
        return replace(row, meta={**row.meta, "file": name})

    def _by_suffix(self) -> DataStep:
        """The reader; another one where the default was left and does not read such a file."""
        suffix = suffix_of(Path(self.path))
        if self.reader != build("data_step", READERS[0]) or suffix in getattr(self.reader, "suffixes", ()):
            return self.reader
        return next((r for r in _readers() if suffix in getattr(r, "suffixes", ())), self.reader)

    def _reader(self) -> DataStep:
        reader = self._by_suffix()
        wanted: dict[str, Any] = {"format": self.format} if self.format != "auto" else {}
        if self.format == "raw-text" and reader.info.name == "read-raw":
            wanted = {}
        if self.columns:
            wanted["columns"] = self.columns
        for name in wanted:
            if name not in type(reader).model_fields:
                missing = "columns" if name == "columns" else "formats"
                raise UserError(f"{name} = {wanted[name]!r}: '{reader.info.name}' has no {missing}. Leave {name} out.")
        return reader.model_copy(update=wanted) if wanted else reader


def splits_of(path: Path) -> list[str]:
    """The names of a saved dataset's splits; none for anything else. Raises UserError for a damaged folder."""
    if not (path / SPLITS).is_file():
        return []
    found = read_json(path / SPLITS)
    names = found.get("splits") if isinstance(found, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise UserError(f"{path / SPLITS} names no splits. Save the dataset again with save_to_disk.")
    missing = next((n for n in names if suffix_of(path / n) != FOLDER), None)
    if missing is not None:
        raise UserError(f"{path / SPLITS} names the split '{missing}', which is not there.")
    return names


def reads(path: Path) -> bool:
    """Whether a path is a file of rows, by its suffix, or a saved dataset; texts are documents as well."""
    return any(suffix_of(path) in getattr(r, "suffixes", ()) for r in _readers() if r.info.name not in TEXTS)


def _readers() -> list[DataStep]:
    return [build("data_step", name) for name in READERS]


def _known() -> list[str]:
    return [suffix for r in _readers() for suffix in getattr(r, "suffixes", ())]
