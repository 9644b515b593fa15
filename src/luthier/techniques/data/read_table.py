"""read-table: a user's own examples in a table or in tagged text: CSV, TSV, Parquet, Arrow, CoNLL, saved datasets.

=====================  =============================================================================================
.csv, .tsv             a header names the columns, or `header` does; cells are texts, lists stand in them as JSON
.parquet, .arrow       columns by name; binary values and columns of nothing are left out
.conll .iob .iob2 .bio  a token and its tag a line, a blank line after each sentence; a .tsv that looks so too
Parquet files          a folder of nothing else, read in the order of their names
a saved dataset        a folder with state.json, as `save_to_disk` leaves it; numbers of classes become their names
=====================  =============================================================================================

Files may be gzipped. One batch of 1,024 rows is in memory.

When it helps: examples that come from spreadsheets, databases and other tools. Source: RFC 4180 for CSV; Tjong Kim Sang
and De Meulder 2003 for tagged text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.example import SourceFile
from luthier.techniques.data import _columns, _delimited
from luthier.techniques.data._files import FOLDER, SHARDS, Found, suffix_of
from luthier.techniques.data._rows import RowReader

TAGGED = (".conll", ".iob", ".iob2", ".bio")


class ReadTable(RowReader, name="read-table"):
    """Examples from tables: CSV, TSV, Parquet, Arrow, tagged tokens, saved datasets."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv", *TAGGED, ".parquet", ".arrow", FOLDER, SHARDS)
    texts_only: ClassVar[bool] = True
    hint: ClassVar[str] = ". If the first line is no header: header: false"
    kind: Literal["auto", "csv", "tsv", "conll", "parquet", "arrow"] = Field("auto", description="of file, whatever its suffix")
    delimiter: str = Field("auto", min_length=1, description="between cells of a CSV file; auto: what the header shows")
    quotes: Literal["auto", "double", "none"] = Field("auto", description="whether \" holds a cell together; auto: in CSV "
                                                      "always, in TSV where every cell that begins with one ends so")
    header: bool | tuple[str, ...] = Field(True, description="false: the file has none, columns are 1, 2, …; or their names")
    encoding: str = Field("auto", description="of a text file; auto: UTF-8, or UTF-16 by its mark")

    def rows(self, file: SourceFile) -> Iterator[Found]:
        """The rows of the table."""
        path = Path(file.path)
        suffix = suffix_of(path) if self.kind == "auto" else f".{self.kind}"
        if suffix in TAGGED or (suffix == ".tsv" and self.header is True and _delimited.looks_tagged(path, self.encoding)):
            return _delimited.tagged(path, self.encoding)
        if suffix in (".csv", ".tsv"):
            return _delimited.cells(path, _delimited.Dialect(
                "\t" if suffix == ".tsv" and self.delimiter == "auto" else self.delimiter, self.quotes, self.header,
                self.encoding))
        if path.is_dir():
            return _columns.folder_rows(path) if suffix == FOLDER else _columns.shard_rows(path)
        return _columns.file_rows(path, suffix)

    def count_rows(self, file: SourceFile) -> int:
        """As many as the file itself says, where it says it."""
        path = Path(file.path)
        suffix = suffix_of(path) if self.kind == "auto" or path.is_dir() else f".{self.kind}"
        said: Any = _columns.said_rows(path, suffix)
        return super().count_rows(file) if said is None else int(said)
