"""The table of passages: its columns, its place, what of it is kept in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import UserError
from luthier.core.example import Passage
from luthier.core.identity import digest

if TYPE_CHECKING:
    import numpy as np

# LanceDB's log speaks of its own files on the user's terminal; errors still arrive as exceptions.
os.environ.setdefault("LANCEDB_LOG", "error")
TABLE = "passages"
KEPT = ["id", "text", "document", "section", "headings", "tokens", "page", "line"]
# What LanceDB keeps of indexes and of files in memory for a table that is open; by itself it would take 7 GB.
INDEX_BYTES, METADATA_BYTES = 256_000_000, 64_000_000


def passage_of(row: Mapping[str, Any]) -> Passage:
    """The passage of a row."""
    return Passage.from_dict({name: row[name] for name in KEPT})


def connect(folder: Path) -> Any:
    """The data base of an index's folder. What it keeps is its own: a folder may be made anew under the same name."""
    import lancedb

    return lancedb.connect(folder, session=lancedb.Session(INDEX_BYTES, METADATA_BYTES))


def open_table(folder: Path) -> Any:
    """The table of an index; one that is open is used again, with what it has read, unless it was written to."""
    return _opened(folder, (folder / f"{TABLE}.lance" / "_versions").stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _opened(folder: Path, written: int) -> Any:
    return connect(folder).open_table(TABLE)


def scan(table: Any, columns: list[str]) -> Iterator[Any]:
    """All rows in record batches."""
    yield from table.search().select(columns).limit(max(1, table.count_rows())).to_batches()


def matrix(batch: Any) -> np.ndarray:
    """[rows, width] float32: the vectors of a record batch."""
    import numpy as np

    return np.asarray(batch.column("vector").flatten(), dtype=np.float32).reshape(len(batch), -1)


class Rows:
    """What was put into a table: ids seen, and an identity that no order changes."""

    def __init__(self) -> None:
        self.cut = self._sum = 0
        self._ids: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, passage: Passage) -> None:
        """Count one passage."""
        short = hashlib.blake2b(passage.id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if short in self._ids:
            raise UserError(f"Two passages have the id '{passage.id}'; ids must differ.")
        self._ids.add(short)
        self._sum = (self._sum + int(digest(passage.to_dict()), 16)) % 2**128

    @property
    def identity(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._sum:032x}"


def schema_of(width: int) -> Any:
    """Columns of the table, with vectors of `width` numbers unless it is 0."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("id", "text", "document", "section")]
    rest = [("headings", pa.list_(pa.string())), ("tokens", pa.int64()), ("page", pa.int64()), ("line", pa.int64()),
            ("searched", pa.string())]
    return pa.schema([*texts, *rest, *([("vector", pa.list_(pa.float32(), width))] if width else [])])
