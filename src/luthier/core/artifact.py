"""Artifact: what a step leaves, in the common formats, with its licence files."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Passage
from luthier.core.files import read_json, read_lines, read_rows, write_json, write_lines, write_rows
from luthier.core.identity import hash_folder

KINDS = ("documents", "examples", "index", "adapter", "delta", "model", "gguf", "records", "report")
MODEL_KINDS = ("adapter", "delta", "model")
WEIGHTS = (*MODEL_KINDS, "gguf")  # a `gguf` is for other programs: nothing here loads it
RECORD = "luthier.json"
LICENSES = "licenses"
# Records of how the work went (times differ from run to run), not part of an artifact's content.
_UNHASHED = frozenset({RECORD, "step.json", "state.json", "failure.json", "journal.jsonl", "receipts.jsonl",
                       "curve.jsonl", "cost.json", "run.json"})


@dataclass(frozen=True)
class Artifact:
    """A folder of one kind. `meta` is its `luthier.json`; `identity` the hash of its files."""

    kind: str
    folder: Path
    meta: dict[str, Any]
    identity: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no artifact kind '{self.kind}'; legal: {', '.join(KINDS)}")

    def examples(self, subset: str = "") -> Iterator[Example]:
        """The examples of one subset (`train`, `dev`, …), or of the artifact when it has no subsets."""
        return (Example.from_dict(r) for r in read_rows(self.folder / "examples" / subset))

    def passages(self) -> Iterator[Passage]:
        """The passages of a `documents` artifact."""
        return (Passage.from_dict(r) for r in read_rows(self.folder / "passages"))

    @property
    def subsets(self) -> list[str]:
        """Names of the subsets of an `examples` artifact."""
        root = self.folder / "examples"
        return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.exists() else []

    def ledger(self) -> list[dict[str, Any]]:
        """Rows that were left out, with the reason."""
        return read_lines(self.folder / "ledger.jsonl")


def seal(kind: str, folder: Path, **meta: Any) -> Artifact:
    """Write `luthier.json` and hash the files.

    Raises:
        ValueError: a model artifact without the licence files of its base.
    """
    if kind in WEIGHTS and not any((folder / LICENSES).glob("*")):
        raise ValueError(f"{kind} artifact in {folder.name} has no {LICENSES}/: terms must travel with the weights")
    identity = meta.pop("identity", None) or hash_folder(folder, _UNHASHED)
    record = {"schema": 1, "kind": kind, "identity": identity, **meta}
    write_json(folder / RECORD, record)
    return Artifact(kind, folder, record, identity)


def sealed_as(folder: Path, later: frozenset[str] = frozenset()) -> str:
    """The identity that `seal` gives these files; `later` names those that were written after it."""
    return hash_folder(folder, _UNHASHED | later)


def content_of(folder: Path) -> str:
    """Hash of an artifact's files and its record, without how the work went: kept when a step ends, to see damage later."""
    return hash_folder(folder, _UNHASHED - {RECORD})


def open_artifact(folder: Path) -> Artifact:
    """The artifact in a folder.

    Raises:
        UserError: no `luthier.json` there.
    """
    path = folder / RECORD
    if not path.exists():
        raise UserError(f"{folder} is not an artifact of Luthier: it has no {RECORD}.")
    record = read_json(path)
    return Artifact(record["kind"], folder, record, record["identity"])


def write_examples(folder: Path, subsets: Mapping[str, Iterable[Example]], ledger: Iterable[Dropped] = (),
                   **meta: Any) -> Artifact:
    """An `examples` artifact: Arrow shards per subset and a ledger of the dropped rows."""
    counts = {n: write_rows(folder / "examples" / n, (e.to_dict() for e in rows)) for n, rows in subsets.items()}
    dropped = write_lines(folder / "ledger.jsonl", ({"id": d.id, "reason": d.reason, "detail": d.detail} for d in ledger))
    return seal("examples", folder, rows=counts, dropped=dropped, **meta)


def copy_licenses(sources: Iterable[Path], folder: Path) -> None:
    """Copy the licence files of bases and data into an artifact's `licenses/`."""
    for source in sources:
        for file in sorted((source / LICENSES).glob("*")):
            (folder / LICENSES).mkdir(parents=True, exist_ok=True)
            target = folder / LICENSES / file.name
            if target.exists() and target.read_bytes() != file.read_bytes():
                target = target.with_name(f"{source.name}-{file.name}")
            shutil.copyfile(file, target)
