"""ingest: files and folders to documents and passages, with a ledger of everything that was left out.

A second run over a changed folder reads only files whose bytes or reader are others; what it took over is in the log,
with what has become stale. The artifact is the one that reading everything would have left, byte for byte.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import LICENSES, Artifact, seal
from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Document, Dropped, Passage, SourceFile
from luthier.core.files import read_rows, write_lines, write_rows
from luthier.core.finding import Finding, receipt
from luthier.core.identity import digest, hash_file
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx, Step
from luthier.pipelines.ledger import without_dropped
from luthier.pipelines.steps.changes import (
    SOURCES,
    Changes,
    ReadBefore,
    earlier,
    passage_changes,
    spool_rows,
    spooled,
    stale,
)

LICENSE_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
SHOWN = 5
# Passages cut, and of these left: fewer than this and the documents say one thing over and over.
FEWEST_CUT, FEWEST_LEFT = 3, 2
SPOOL = "read.jsonl"
# Files taken over from an earlier run that are read again, to see that nothing else has changed (a library, say).
PROBES = 3


@dataclass(frozen=True)
class _Source:
    """A file that was found: who reads it, or why nobody does."""

    file: SourceFile
    reader: DataStep | None = None
    reason: str = ""
    detail: str = ""

    @property
    def is_license(self) -> bool:
        return self.reason == "licence file"


class Ingest(Step, name="ingest", version=4):
    """Reads files and folders, cuts them into passages and leaves out near-duplicates."""

    inputs: ClassVar[dict[str, str]] = {"base?": "model"}
    output: ClassVar[str] = "documents"
    seeded: ClassVar[bool] = False

    paths: list[str] = Field(min_length=1, description="files and folders; folders are walked, hidden files skipped")
    readers: list[Slot[DataStep]] = Field(
        named(["read-markdown", "read-text", "read-html", "read-code", "read-pdf", "read-notebook", "read-docx", "read-pptx",
               "read-epub"]), min_length=1,
        description="who reads what; the first that knows a file's suffix")
    chunker: Slot[DataStep] = Field(
        named("chunk-by-structure"), description="cuts documents into passages")
    duplicates: Slot[DataStep] | None = Field(
        named("near-duplicates"), description="leaves out repeated passages; null keeps them")

    def check(self) -> None:
        """Refuse missing paths and folders in which nothing can be read."""
        readers = self._by_suffix()
        legal = ", ".join(readers)
        for path in self.paths:
            found = list(_walk(Path(path)))
            known = sorted({_suffix(p) for p, _ in found if _suffix(p) in readers and not _is_license(p)})
            needed = {_missing(readers[suffix], suffix) for suffix in known}
            if "" in needed:
                continue
            if needed:
                raise UserError(f"paths: {path} holds only files ({', '.join(known)}) whose readers are not installed: "
                                f"{'; '.join(sorted(needed))}")
            if not found:
                raise UserError(f"paths: {path} holds no files. Legal: {legal}.")
            suffixes = Counter(_suffix(p) or "no suffix" for p, _ in found)
            counted = ", ".join(f"{s} ({n})" for s, n in sorted(suffixes.items()))
            raise UserError(f"paths: nothing in {path} can be read; found: {counted}. Legal: {legal}. "
                            "Convert the files, or name another reader in 'readers'.")

    def content(self) -> dict[str, Any]:
        """Hash of every file that is read or copied; of the others, the name."""
        return {s.file.id: _hash(Path(s.file.path)) if s.reader or s.is_license else s.reason for s in self._sources()}

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Stream files to `documents/`, then these to `passages/`; whatever is left out goes to `ledger.jsonl`."""
        for name in ("documents", "passages", LICENSES):
            shutil.rmtree(ctx.folder / name, ignore_errors=True)  # of an attempt that was killed
        counted_by = "words and signs"
        if "base" in inputs:
            ctx = replace(ctx, roles={**ctx.roles, "tokenizer": ctx.engine.tokenizer(inputs["base"])})
            counted_by = str(inputs["base"].meta.get("name", inputs["base"].identity))
        sources = self._sources()
        last = earlier(ctx.folder, "documents")
        self._read(sources, ReadBefore(last), ctx)
        ledger: list[Dropped] = []
        documents = write_rows(ctx.folder / "documents", _documents(ctx.folder / SPOOL, ledger))
        if not documents:
            _refuse_nothing(ledger)
        unread = len(ledger)
        counts: Counter[str] = Counter()
        passages = write_rows(ctx.folder / "passages", (p.to_dict() for p in self._cut(ctx, ledger, counts)))
        if not passages:
            name = self.chunker.info.name
            raise UserError(f"'{name}' made no passage of {documents} documents. Name another 'chunker'.")
        if counts["cut"] >= FEWEST_CUT and passages < FEWEST_LEFT:
            raise UserError(
                f"The {counts['cut']} passages of {documents} documents are near-duplicates of one another; {passages} "
                "is left. Name documents that differ in 'paths', or keep all with 'duplicates: null'.")
        dropped = write_lines(ctx.folder / "ledger.jsonl", (vars(d) for d in ledger))
        _copy_licenses([s for s in sources if s.is_license], ctx.folder / LICENSES)
        ctx.log(f"{len(sources)} files: {documents} documents, {unread} left out; {counts['cut']} passages cut, "
                f"{passages} kept, {counts['tokens']} tokens by {counted_by}")
        (ctx.folder / SPOOL).unlink()
        artifact = seal("documents", ctx.folder, files=len(sources), documents=documents, passages=passages,
                        dropped=dropped, tokens=counts["tokens"], unread=unread, uncut=counts["uncut"],
                        cut=counts["cut"], counted_by=counted_by)
        if last is not None:
            _say_what_is_stale(last, artifact, ctx)
        return artifact

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Nothing vanished: files are documents or in the ledger, passages cut are kept or in the ledger."""
        meta = artifact.meta
        documents = sum(1 for _ in read_rows(artifact.folder / "documents"))
        passages = sum(1 for _ in artifact.passages())
        repeated = len(artifact.ledger()) - meta["unread"] - meta["uncut"]
        return [
            *self._reused_again(artifact, ctx),
            receipt("files", meta["files"], documents + meta["unread"], unit="files", evidence="ledger.jsonl",
                    detail=f"{documents} documents + {meta['unread']} in the ledger"),
            receipt("passages", meta["cut"], passages + repeated, unit="passages", evidence="ledger.jsonl",
                    detail=f"{passages} kept + {repeated} duplicates in the ledger"),
        ]

    def _by_suffix(self) -> dict[str, DataStep]:
        found: dict[str, DataStep] = {}
        for reader in self.readers:
            suffixes = getattr(reader, "suffixes", ())
            if not suffixes:
                raise UserError(f"readers: '{reader.info.name}' reads no files. See: luthier list data_step")
            for suffix in suffixes:
                found.setdefault(suffix, reader)
        return found

    def _sources(self) -> list[_Source]:
        """Every file in a fixed order, each once, with an id of its own."""
        readers = self._by_suffix()
        sources: list[_Source] = []
        taken: set[str] = set()
        known: set[Path] = set()
        for given in self.paths:
            top = Path(given)
            for path, trouble in _walk(top):
                real = path.resolve()
                if real in known:
                    continue
                known.add(real)
                # Two folders may hold a file of the same name; then the second keeps its folder's.
                short = path.relative_to(top).as_posix() if path != top else path.name
                name = next(n for n in (short, path.as_posix(), real.as_posix()) if n not in taken)
                taken.add(name)
                file = SourceFile(name, str(path))
                if trouble:
                    sources.append(_Source(file, None, "unreadable", trouble))
                elif _is_license(path):
                    sources.append(_Source(file, None, "licence file", f"copied to {LICENSES}/"))
                elif _suffix(path) in readers and (needed := _missing(readers[_suffix(path)], _suffix(path))):
                    sources.append(_Source(file, None, "reader not installed", needed))
                elif _suffix(path) in readers:
                    sources.append(_Source(file, readers[_suffix(path)]))
                else:
                    sources.append(_Source(file, None, f"no reader for {_suffix(path) or 'files without a suffix'}"))
        return sources

    def _read(self, sources: Sequence[_Source], before: ReadBefore, ctx: Ctx) -> None:
        """A line a file in the spool: what its reader made of it now, or had made of the same bytes before."""
        reused: list[str] = []

        def rows(done: set[str]) -> Iterator[dict[str, Any]]:
            for number, source in enumerate(sources, 1):
                if source.file.id not in done:
                    yield self._row(source, before, ctx)
                ctx.progress(number, len(sources), "files")

        spooled(ctx.folder / SPOOL, rows, [s.file.id for s in sources])
        now: dict[str, dict[str, Any]] = {}
        for row in spool_rows(ctx.folder / SPOOL):
            if row["reader"]:
                now[row["id"]] = {k: row[k] for k in ("id", "sha256", "reader", "dropped")}
                now[row["id"]]["documents"] = len(row["documents"])
                reused += [row["id"]] if row["reused"] else []
        write_lines(ctx.folder / SOURCES, now.values())
        if before.sources:
            ctx.log(f"{Changes.between(before.sources, now).words()}; {len(now) - len(reused)} of {len(now)} read")
        ctx.journal.put("reused", reused)

    def _row(self, source: _Source, before: ReadBefore, ctx: Ctx) -> dict[str, Any]:
        row: dict[str, Any] = {"id": source.file.id, "sha256": "", "reader": "", "reused": False, "documents": [],
                               "dropped": []}
        if source.reader is None:
            return {**row, "dropped": [vars(Dropped(source.file.id, source.reason, source.detail))]}
        row |= {"sha256": _hash(Path(source.file.path)), "reader": source.reader.identity}
        known = before.get(row["id"], row["sha256"], row["reader"])
        return row | (_read_one(source, ctx) if known is None else known) | {"reused": known is not None}

    def _reused_again(self, artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Some of the files that were taken over, read again: the same rows."""
        names = ctx.journal.values.get("reused", [])
        probes = set(names[::-(-len(names) // PROBES)] if names else ())
        chosen = [s for s in self._sources() if s.file.id in probes]
        if not chosen:
            return []
        before = ReadBefore(artifact)
        kept = {s.file.id: before.sources[s.file.id] for s in chosen}
        same = sum(digest(before.get(n, kept[n]["sha256"], kept[n]["reader"])) == digest(_read_one(s, ctx))
                   for s in chosen if (n := s.file.id))
        return [receipt("reused files", len(chosen), same, unit="files", evidence=SOURCES,
                        detail=f"read again and found as they were taken over, of {len(names)}: {', '.join(sorted(probes))}")]

    def _cut(self, ctx: Ctx, ledger: list[Dropped], counts: Counter[str]) -> Iterator[Passage]:
        """The passages that stay; `counts` gets how many were cut and the tokens of those that stay."""
        documents = (Document.from_dict(r) for r in read_rows(ctx.folder / "documents"))

        def cut() -> Iterator[Passage]:
            left_out: list[Dropped] = []
            for passage in without_dropped(self.chunker.apply(documents, ctx), left_out):
                counts["cut"] += 1
                yield passage
            counts["uncut"] = len(left_out)
            ledger.extend(left_out)

        left: Iterator[Any] = self.duplicates.apply(cut(), ctx) if self.duplicates else cut()
        for passage in without_dropped(left, ledger):
            counts["tokens"] += passage.tokens
            yield passage


def _walk(top: Path) -> Iterator[tuple[Path, str]]:
    """Files below a folder (or the file itself) in a fixed order, and what keeps one from being opened."""
    if top.is_file():
        yield top, ""
        return
    if not top.is_dir():
        raise UserError(f"paths: there is no file or folder '{top}' (looked in {Path.cwd()}). Name files or folders that are "
                        "there: luthier adapt DOCS")
    closed: list[OSError] = []
    for folder, folders, files in os.walk(top, onerror=closed.append):
        linked = [f for f in folders if not f.startswith(".") and (Path(folder) / f).is_symlink()]
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in linked)
        for name in sorted([*files, *linked]):
            path = Path(folder) / name
            if name in linked:
                yield path, "a link to a folder is not followed; name the folder in 'paths'"
            elif not name.startswith("."):
                yield path, "" if path.is_file() else "not a regular file"
    for error in closed:
        yield Path(error.filename), f"folder: {error.strerror}"


def _read_one(source: _Source, ctx: Ctx) -> dict[str, Any]:
    """What a reader makes of one file, as plain JSON values."""
    assert source.reader is not None
    dropped: list[Dropped] = []
    made = [d.to_dict() for d in without_dropped(source.reader.apply(iter([source.file]), ctx), dropped)]
    return {"documents": json.loads(json.dumps(made)), "dropped": [vars(d) for d in dropped]}


def _documents(spool: Path, ledger: list[Dropped]) -> Iterator[dict[str, Any]]:
    for row in spool_rows(spool):
        ledger.extend(Dropped(**d) for d in row["dropped"])
        yield from row["documents"]


def _missing(reader: DataStep, suffix: str) -> str:
    """What a reader needs installed before it can read files of a suffix; empty when nothing."""
    ask = getattr(reader, "missing", None)
    return str(ask(suffix)) if ask else ""


def _say_what_is_stale(last: Artifact, artifact: Artifact, ctx: Ctx) -> None:
    if last.identity == artifact.identity:
        ctx.log("the documents are as before; nothing that was made from them is stale")
        return
    words, gone = passage_changes(last, artifact)
    ctx.log(words)
    made = list(stale(last, gone))
    if made:
        ctx.log(f"stale, because made from the documents as they were: {'; '.join(made)}")


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _is_license(path: Path) -> bool:
    return path.name.startswith(LICENSE_NAMES)


def _hash(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"



def _refuse_nothing(ledger: list[Dropped]) -> None:
    ledger = sorted(ledger, key=lambda d: d.reason.startswith(("no reader", "licence")))  # the telling ones first
    shown = "\n  ".join(f"{d.id}: {d.reason}{f' ({d.detail})' if d.detail else ''}" for d in ledger[:SHOWN])
    more = f"\n  … and {len(ledger) - SHOWN} more" if len(ledger) > SHOWN else ""
    raise UserError(f"None of the {len(ledger)} files could be read:\n  {shown}{more}")


def _copy_licenses(sources: list[_Source], folder: Path) -> None:
    """Copy under names that tell their folder: the licences of bases and of other data will lie beside them."""
    for source in sources:
        path = Path(source.file.path).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target, number = folder / f"{path.parent.name}-{path.name}", 2
        while target.exists():
            target, number = folder / f"{path.parent.name}-{number}-{path.name}", number + 1
        shutil.copyfile(path, target)
