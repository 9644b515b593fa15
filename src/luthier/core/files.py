"""Files that are either whole or absent: atomic writes, a journal that survives a kill, rows in Arrow shards."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from luthier.core.errors import UserError

SHARD_ROWS, SHARD_LETTERS = 4096, 8_000_000
_READ_ROWS = 64


def write_atomic(path: Path, text: str) -> None:
    """Write, flush to disk, then rename: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(path.name + ".part")
    try:
        # A lone surrogate (damaged text) becomes its escape, which JSON reads back.
        with work.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value of a file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Start over with --fresh, or give another folder with --out.") from None


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """JSON lines, written atomically; returns how many."""
    lines = [json.dumps(r, ensure_ascii=False) for r in rows]
    write_atomic(path, "".join(line + "\n" for line in lines))
    return len(lines)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none when the file is absent."""
    if not path.exists():
        return []
    # Only "\n" ends a row: splitlines() would also cut at separators that may stand inside a JSON string.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


class Growing:
    """JSON lines that other processes may read while they grow: begun whole, then longer by whole lines.

    A kill may leave the last line cut off; `grown` reads up to it, and the next start begins the file anew.
    """

    def __init__(self, path: Path, rows: Iterable[dict[str, Any]] = ()) -> None:
        write_lines(path, rows)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def add(self, row: dict[str, Any]) -> None:
        """One more line."""
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()


def grown(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that another process may be writing; none when it is absent."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    return [json.loads(line) for line in text.split("\n")[:-1] if line]


def json_lines(text: str, problems: list[str]) -> Iterator[tuple[int, Any]]:
    """(number from 1, value) of each line of a user's JSON lines that is not blank.

    A line that is no JSON is not among them; `problems` gets its number and what is wrong with it.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: broken JSON ({error})")
            continue
        yield number, value


def commit_folder(work: Path, final: Path) -> None:
    """Rename a finished private folder to its public name, replacing an older one."""
    if final.exists():
        old = final.with_name(final.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
        os.replace(work, final)
        shutil.rmtree(old)
    else:
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(work, final)


class Journal:
    """Append-only results by key. `do(key, make)` computes once; a second call, or a second process, reads.

    A line torn by a kill is cut off when the journal is opened; everything before it stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        if path.exists():
            self._recover()

    def _recover(self) -> None:
        good = 0
        with self.path.open("rb") as file:
            for line in file:
                try:
                    if not line.endswith(b"\n"):
                        break
                    record = json.loads(line)
                except ValueError:
                    break
                self.values[record["key"]] = record["value"]
                good += len(line)
        if good < self.path.stat().st_size:
            with self.path.open("rb+") as file:
                file.truncate(good)

    def do(self, key: str, make: Callable[[], Any]) -> Any:
        """The value under `key`, made and stored if it is not there. Values are JSON."""
        if key not in self.values:
            self.put(key, make())
        return self.values[key]

    def put(self, key: str, value: Any) -> None:
        """Store one value and flush it to disk."""
        line = json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rest = memoryview(line.encode("utf-8", errors="backslashreplace"))
        with self.path.open("ab", buffering=0) as file:
            whole = file.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[file.write(rest):]
                os.fsync(file.fileno())
            except BaseException:
                # Half a line (full disk, interrupt) would swallow the next one.
                os.ftruncate(file.fileno(), whole)
                raise
        self.values[key] = json.loads(line)["value"]

    def __contains__(self, key: str) -> bool:
        return key in self.values


class Memory(Journal):
    """A journal that keeps nothing: what is asked for once leaves no trace on any disk, and needs no room there."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull))

    def _recover(self) -> None:
        return

    def put(self, key: str, value: Any) -> None:
        """Remember one value, as it would come back from a file."""
        self.values[key] = json.loads(json.dumps(value, ensure_ascii=False))


def write_rows(folder: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Rows as Arrow shards `rows-00000.arrow`, …; only one shard is in memory. Returns how many rows.

    Scalars become columns; anything nested becomes a JSON string column marked in the schema's metadata, so that
    rows of differing shape share a table and any Arrow reader opens the file.
    """
    import pyarrow as pa

    folder.mkdir(parents=True, exist_ok=True)
    count, number, letters = 0, 0, 0
    shard: list[dict[str, Any]] = []

    def flush() -> None:
        nonlocal number
        names = list(dict.fromkeys(k for r in shard for k in r))
        nested = [n for n in names if any(isinstance(r.get(n), (dict, list, tuple)) for r in shard)]
        mixed = [n for n in names if n not in nested and len({type(r[n]) for r in shard if r.get(n) is not None}) > 1]
        packed = [*nested, *mixed]
        columns = {
            n: [json.dumps(r.get(n), ensure_ascii=False) if n in packed else r.get(n) for r in shard] for n in names
        }
        table = pa.table(columns).replace_schema_metadata({"json": json.dumps(packed)})
        with pa.OSFile(str(folder / f"rows-{number:05d}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as w:
            w.write_table(table)
        number += 1

    for row in rows:
        shard.append(row)
        count += 1
        letters += _letters(row)
        if len(shard) == SHARD_ROWS or letters >= SHARD_LETTERS:
            flush()
            shard, letters = [], 0
    if shard or not number:
        flush()
    for path in folder.glob("rows-*.arrow"):
        if int(path.stem.removeprefix("rows-")) >= number:  # of an earlier, longer writing
            path.unlink()
    return count


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of Arrow shards, one shard in memory at a time."""
    import pyarrow as pa

    for path in sorted(folder.glob("rows-*.arrow")):
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
            packed = json.loads((table.schema.metadata or {}).get(b"json", b"[]"))
            for batch in table.to_batches(max_chunksize=_READ_ROWS):
                for row in batch.to_pylist():
                    yield {k: json.loads(v) if k in packed else v for k, v in row.items()}


def _letters(value: Any) -> int:
    """About how much text a row holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_letters, value.values()))
    return sum(map(_letters, value)) if isinstance(value, (list, tuple)) else 1


def link_tree(source: Path, target: Path, skip: Collection[str] = ()) -> None:
    """The files of a folder in another one, by hard link where the file system allows it.

    skip: names directly in `source` that are left out. What is in `target` already stays.
    """
    def link(one: str, two: str) -> None:
        try:
            os.link(one, two)
        except OSError:
            shutil.copyfile(one, two)

    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        there = target / path.name
        if path.name in skip or there.exists():
            continue
        shutil.copytree(path, there, copy_function=link) if path.is_dir() else link(str(path), str(there))
