"""What an earlier artifact of the same step left, what of it still holds, and what hangs on the rest.

A step works in `.NAME.work` beside its last finished artifact `NAME`. What that artifact says of its sources (hash,
reader) decides what is taken over; the new artifact is the same, byte for byte, as one made from nothing.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.artifact import Artifact, open_artifact
from luthier.core.errors import UserError
from luthier.core.example import Passage
from luthier.core.files import read_json, read_lines, read_rows

SOURCES = "sources.jsonl"
SHOWN = 5


def earlier(folder: Path, kind: str) -> Artifact | None:
    """The last finished artifact of the step that works in `folder`; None when there is none of that kind."""
    if not (folder.name.startswith(".") and folder.name.endswith(".work")):
        return None
    final = folder.with_name(folder.name.removeprefix(".").removesuffix(".work"))
    if not (final / "step.json").exists():
        return None
    try:
        found = open_artifact(final)
    except (UserError, KeyError):
        return None  # damaged: everything is made anew
    return found if found.kind == kind else None


class RowsAt:
    """Rows of Arrow shards by their number, without reading the others."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        self._tables = [pa.ipc.open_file(pa.memory_map(str(p))).read_all() for p in sorted(folder.glob("rows-*.arrow"))]
        self._starts = [0]
        for table in self._tables:
            self._starts.append(self._starts[-1] + table.num_rows)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, number: int) -> dict[str, Any]:
        shard = bisect_right(self._starts, number) - 1
        table = self._tables[shard]
        packed = json.loads((table.schema.metadata or {}).get(b"json", b"[]"))
        row = table.slice(number - self._starts[shard], 1).to_pylist()[0]
        return {k: json.loads(v) if k in packed else v for k, v in row.items()}


class ReadBefore:
    """What an earlier `documents` artifact says of each file: its rows, if file and reader are the same."""

    def __init__(self, artifact: Artifact | None) -> None:
        self.sources: dict[str, dict[str, Any]] = {}
        self._first: dict[str, int] = {}
        self._rows: RowsAt | None = None
        if artifact is None or not (artifact.folder / SOURCES).exists():
            return
        self._rows = RowsAt(artifact.folder / "documents")
        at = 0
        for row in read_lines(artifact.folder / SOURCES):
            self.sources[row["id"]], self._first[row["id"]] = row, at
            at += row["documents"]
        if at != len(self._rows):
            self.sources, self._rows = {}, None  # not what the artifact says: everything is read again

    def get(self, name: str, sha256: str, reader: str) -> dict[str, Any] | None:
        """`{documents, dropped}` of a file that was read under this name, with these bytes, by this reader."""
        row = self.sources.get(name)
        if row is None or self._rows is None or (row["sha256"], row["reader"]) != (sha256, reader):
            return None
        first = self._first[name]
        return {"documents": [self._rows[first + i] for i in range(row["documents"])], "dropped": row["dropped"]}


@dataclass(frozen=True)
class Changes:
    """Names of files since the last time."""

    new: list[str]
    changed: list[str]
    gone: list[str]
    same: int

    @classmethod
    def between(cls, before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> Changes:
        """Compare two sets of sources by name; a file counts as changed when its bytes or its reader are others."""
        keys = ("sha256", "reader")
        return cls([n for n in now if n not in before],
                   [n for n in now if n in before and any(before[n][k] != now[n][k] for k in keys)],
                   [n for n in before if n not in now],
                   sum(n in before and all(before[n][k] == now[n][k] for k in keys) for n in now))

    def words(self) -> str:
        """One line: how many, and the first names of each."""
        shown = [f"{len(names)} {what} ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"
                 for what, names in (("new", self.new), ("changed", self.changed), ("gone", self.gone)) if names]
        return f"files since the last time: {', '.join([*shown, f'{self.same} as before'])}"


def passage_changes(last: Artifact, artifact: Artifact) -> tuple[str, set[str]]:
    """In words, how many passages are new, changed and gone; and the ids of those whose text is no more."""
    old = {p.id: exact(p) for p in last.passages()}
    new = changed = same = 0
    for passage in artifact.passages():
        was = old.get(passage.id)
        if was is None:
            new += 1
        elif was == exact(passage):
            same += 1
            del old[passage.id]
        else:
            changed += 1
    gone = len(old) - changed
    return f"passages since the last time: {new} new, {changed} changed, {gone} gone, {same} as before", set(old)


def exact(passage: Passage) -> bytes:
    """What a passage says and under which headings."""
    return hashlib.blake2b(json.dumps([passage.headings, passage.text]).encode(), digest_size=16).digest()


def stale(artifact: Artifact, gone: set[str]) -> Iterator[str]:
    """What stands beside an earlier artifact and was made from it, directly or not, one line each.

    `gone` are ids of passages that are no more; rows that were written from them are counted.
    """
    waiting, old = {}, {artifact.identity}
    for path in sorted(artifact.folder.parent.glob("*/step.json")):
        if path.parent.name[0] != "." and path.parent != artifact.folder:
            waiting[path.parent] = read_json(path)
    while found := [f for f, record in waiting.items() if old & set(record["inputs"].values())]:
        for folder in found:
            record = waiting.pop(folder)
            old.add(record["identity"])
            yield f"{folder.name} ({record['kind']}){_written_from(folder, record['kind'], gone)}"


def _written_from(folder: Path, kind: str, gone: set[str]) -> str:
    if kind != "examples" or not (folder / "examples").is_dir():
        return ""
    rows = [row.get("source") in gone for part in sorted((folder / "examples").iterdir()) for row in read_rows(part)]
    return f": {sum(rows)} of its {len(rows)} rows were written from passages that are no more"


def spooled(path: Path, make: Callable[[set[str]], Iterator[dict[str, Any]]], names: Sequence[str]) -> None:
    """Append what `make(names done)` yields to a file of JSON lines, each whole once it ends with a line end.

    A line torn by a kill is cut off; what is there already is not made again. Each row names its file in `id`; rows come
    in the order of `names`.
    """
    done, good = set(), 0
    if path.exists():
        with path.open("rb") as file:
            for line, name in zip(file, names, strict=False):
                try:
                    if not line.endswith(b"\n") or json.loads(line)["id"] != name:
                        break
                except ValueError:
                    break
                done.add(name)
                good += len(line)
        with path.open("rb+") as file:
            file.truncate(good)
    with path.open("ab", buffering=0) as file:
        for row in make(done):
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def spool_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a spool, one in memory at a time."""
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)
