"""Files of rows as they lie on disk: plain or gzipped, as bytes or as text whose encoding is known before the first row.

Everything streams. What can't be read becomes a UserError that names the file, whatever library found it out.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

from luthier.core.errors import UserError

GZIP = ".gz"
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_LOOK = 4096
# The folders that `save_to_disk` of the library datasets leaves: one data set, or several by the names of their splits.
FOLDER = "datasets folder"
STATE, SPLITS = "state.json", "dataset_dict.json"
SHARDS = "folder of Parquet files"  # and of nothing else


class Found(NamedTuple):
    """One row of a file: `number` from 1, `line` where it begins (0: it has none), `why` it is no row."""

    number: int
    row: dict[str, object] | None
    why: str = ""
    line: int = 0


def suffix_of(path: Path) -> str:
    """What kind of rows a path holds, by its name: `.csv` of `rows.csv.gz`; `FOLDER` for a folder that datasets saved.

    A folder that holds Parquet files and nothing else is `SHARDS`.
    """
    if (path / STATE).is_file() or (path / SPLITS).is_file():
        return FOLDER
    if shards(path):
        return SHARDS
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == GZIP else suffix


def shards(path: Path) -> list[Path]:
    """The files of a folder of Parquet files, in the order of their names; none for anything else.

    Hidden files and marks such as Spark's `_SUCCESS` are passed over.
    """
    found: list[Path] = []
    try:
        for one in path.iterdir() if path.is_dir() else ():
            if not one.name.startswith((".", "_")):
                if one.suffix.lower() != ".parquet" or not one.is_file():
                    return []
                found.append(one)
    except OSError:
        return []  # who reads it says why it can't be read
    return sorted(found)


@contextmanager
def reading(path: Path, encoding: str = "UTF-8") -> Iterator[None]:
    """Turns what libraries raise at a damaged or closed file into a UserError."""
    try:
        yield
    except gzip.BadGzipFile as error:
        raise UserError(f"{path} can't be read: not gzip, or damaged ({error}).") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path} can't be read: damaged or cut off ({error}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} can't be read: not {encoding} (0x{error.object[error.start]:02x}: {error.reason}). Save it "
                        "as UTF-8.") from None


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked. Raises UserError, while it is read too."""
    with reading(path), (gzip.open(path) if path.suffix.lower() == GZIP else path.open("rb")) as file:
        yield file  # type: ignore[misc]


@contextmanager
def open_text(path: Path, encoding: str = "auto") -> Iterator[TextIO]:
    """The text of a file, line ends as they are; `auto` is UTF-8, or UTF-16 and UTF-32 by their mark.

    Raises:
        UserError: bytes that the encoding has not, while they are read too; an encoding that does not exist.
    """
    with open_bytes(path) as file:
        start = file.read(_LOOK)
    name = next((n for mark, n in MARKS if start.startswith(mark)), "utf-8") if encoding == "auto" else encoding
    if name == "utf-8" and b"\0" in start:
        raise UserError(f"{path} is no UTF-8 text: it holds NUL bytes. If it is UTF-16 without a mark, name "
                        "encoding: utf-16-le.")
    try:
        codecs.lookup(name)
    except LookupError:
        raise UserError(f"encoding = {encoding!r}: there is no encoding of that name. Write auto, utf-8, utf-16 or "
                        "cp1252.") from None
    with open_bytes(path) as file, io.TextIOWrapper(file, encoding=name, newline="") as text:
        try:
            yield text
        except UnicodeDecodeError as error:
            byte = f"0x{error.object[error.start]:02x}"
            hint = ". Save it as UTF-8, or name its encoding, such as encoding: cp1252" if name.startswith("utf-8") else ""
            raise UserError(f"{path} is not {name.removesuffix('-sig').upper()}: it holds the byte {byte}, {error.reason}"
                            f"{hint}.") from None
