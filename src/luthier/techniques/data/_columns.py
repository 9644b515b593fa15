"""Tables by columns: Parquet and Arrow files, folders of Parquet files, and what the library datasets saves. Batches stream.

What JSON has not is made what it has: dates become texts, decimals numbers. Binary values and empty ones are left out.
Where the file's metadata or `dataset_info.json` names classes, their numbers become names.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.techniques.data._files import GZIP, SHARDS, STATE, Found, open_bytes, reading, shards, suffix_of

BATCH_ROWS = 1024
INFO = "dataset_info.json"
_MAGIC = b"ARROW1"
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.parquet", re.IGNORECASE)  # as hubs and the library datasets name them
Name = Callable[[Any], Any]


def file_rows(path: Path, suffix: str) -> Iterator[Found]:
    """The rows of a Parquet or Arrow file. Raises UserError for one that is damaged."""
    number = 0
    for batch, names in _batches(path, suffix):
        for row in _rows(batch, names):
            number += 1
            yield Found(number, row)


def folder_rows(folder: Path) -> Iterator[Found]:
    """The rows of a saved dataset, shard after shard. Raises UserError for a folder that is no whole one."""
    features = _features(read_json(folder / INFO).get("features")) if (folder / INFO).is_file() else {}
    number = 0
    for path in _shards(folder):
        for batch, names in _batches(path, ".arrow"):
            for row in _rows(batch, {**names, **features}):
                number += 1
                yield Found(number, row)


def shard_rows(folder: Path) -> Iterator[Found]:
    """The rows of a folder of Parquet files, file after file. Raises UserError for one that is not whole."""
    number = 0
    for path in parquet_files(folder):
        for found in file_rows(path, ".parquet"):
            number += 1
            yield found._replace(number=number)


def parquet_files(folder: Path) -> list[Path]:
    """The files of a folder of Parquet files.

    Raises:
        UserError: their names say that one is missing, or that they are of several splits.
    """
    paths = shards(folder)
    said = [found for path in paths if (found := _PART.fullmatch(path.name))]
    splits = sorted({found[1] for found in said})
    if len(splits) > 1:
        raise UserError(f"{folder} holds the files of several splits ({', '.join(splits)}). Put those of each into a folder of "
                        f"its own, such as {folder}/{splits[0]}, and name that.")
    if said and len(said) != int(said[0][2]):
        raise UserError(f"{folder}: {said[0][0]} says that there are {int(said[0][2])} files, and {len(said)} are there. "
                        "Copy the others too.")
    return paths


def said_rows(path: Path, suffix: str) -> int | None:
    """How many rows a Parquet file, or a folder of them, says that it has; None for everything else."""
    if suffix == SHARDS:
        return sum(said_rows(one, ".parquet") or 0 for one in parquet_files(path))
    if suffix != ".parquet":
        return None
    import pyarrow.parquet as pq

    with _damaged(path), _seekable(path) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def files_of(path: Path) -> list[Path]:
    """The files whose contents are a folder's; the file itself for any other path."""
    if suffix_of(path) == SHARDS:
        return parquet_files(path)
    return [*_shards(path), *([path / INFO] if (path / INFO).is_file() else [])] if path.is_dir() else [path]


def _shards(folder: Path) -> list[Path]:
    state = read_json(folder / STATE)
    listed = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(listed, list) or not all(isinstance(f, dict) and isinstance(f.get("filename"), str) for f in listed):
        raise UserError(f"{folder / STATE} names no data files. Save the dataset again with save_to_disk.")
    if state.get("_indices_data_files"):
        raise UserError(f"{folder} was saved with an order of its own. Write it out with flatten_indices() and save it again.")
    paths = [folder / f["filename"] for f in listed]
    missing = next((p for p in paths if p.parent != folder or not p.is_file()), None)
    if missing is not None:
        raise UserError(f"{folder / STATE} names {missing.name}, which is not there.")
    return paths


def _batches(path: Path, suffix: str) -> Iterator[tuple[list[dict[str, Any]], dict[str, Name]]]:
    """The rows of each record batch, and what makes names of the class numbers of their columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _damaged(path):
        if suffix == ".parquet":
            with _seekable(path) as file:
                table = pq.ParquetFile(file)
                names = _checked(table.schema_arrow, path)
                for batch in table.iter_batches(batch_size=BATCH_ROWS):
                    yield _listed(batch), names
            return
        with _seekable(path) as file:
            start = file.read(len(_MAGIC))
            file.seek(0)
            if start == _MAGIC:
                whole = pa.ipc.open_file(file)
                names = _checked(whole.schema, path)
                for n in range(whole.num_record_batches):
                    yield _listed(whole.get_batch(n)), names
                return
            stream = pa.ipc.open_stream(file)  # what datasets writes
            names = _checked(stream.schema, path)
            for batch in stream:
                yield _listed(batch), names


def _listed(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch, its offsets checked first: damaged ones would be followed out of its memory."""
    batch.validate(full=True)
    rows: list[dict[str, Any]] = batch.to_pylist()
    return rows


@contextmanager
def _seekable(path: Path) -> Iterator[Any]:
    """A file that can be read from any place: a packed one is unpacked on the disk first."""
    if path.suffix.lower() != GZIP:
        with reading(path), path.open("rb") as plain:
            yield plain
        return
    with tempfile.TemporaryFile() as copy:
        with open_bytes(path) as packed:
            shutil.copyfileobj(packed, copy)
        copy.seek(0)
        yield copy


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    import pyarrow as pa

    with reading(path):
        try:
            yield
        except (pa.ArrowException, ValueError, KeyError) as error:
            raise UserError(f"{path} can't be read: {str(error).splitlines()[0] if str(error) else error!r}. It is damaged, "
                            "or of another kind than its name says.") from None


def _checked(schema: Any, path: Path) -> dict[str, Name]:
    twice = next((n for n in schema.names if schema.names.count(n) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: two columns have the name '{twice}'. Give each a name of its own.")
    said = (schema.metadata or {}).get(b"huggingface")
    try:
        return _features(json.loads(said)["info"]["features"]) if said else {}
    except (ValueError, KeyError, TypeError):
        return {}  # metadata of another tool under the same name


def _rows(batch: list[dict[str, Any]], names: dict[str, Name]) -> Iterator[dict[str, Any]]:
    for row in batch:
        made = {k: names[k](v) if k in names else v for k, v in row.items()}
        yield {str(k): _plain(v) for k, v in made.items() if v is not None and not isinstance(v, (bytes, bytearray))}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if not isinstance(v, (bytes, bytearray))}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _features(features: Any) -> dict[str, Name]:
    """For each column with classes, what turns their numbers into names."""
    found = {k: _namer(v) for k, v in features.items()} if isinstance(features, dict) else {}
    return {k: namer for k, namer in found.items() if namer is not None}


def _namer(feature: Any) -> Name | None:
    if isinstance(feature, list) and len(feature) == 1:
        feature = {"_type": "List", "feature": feature[0]}
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
        names = [str(n) for n in feature["names"]]
        # -1 says that a row of a test set has no class
        return lambda v: names[v] if isinstance(v, int) and 0 <= v < len(names) else None if v == -1 else v
    inner = _namer(feature.get("feature")) if feature.get("_type") in ("Sequence", "List", "LargeList") else None
    return None if inner is None else lambda values: [inner(v) for v in values] if isinstance(values, list) else values
