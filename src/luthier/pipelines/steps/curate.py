"""Curate: examples or passages through any data steps, one after the other; the ledger holds what was left out.

Rows stream from shard to shard through the whole chain; only what a data step keeps for itself is in memory. Of a split
artifact the training rows alone are changed, so that no curation moves a test; the rest is handed on as it is.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.component import Slot
from luthier.core.errors import UserError, nearest
from luthier.core.files import write_rows
from luthier.core.finding import Finding, receipt
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx, Step
from luthier.pipelines.ledger import Ledger

WHOLE, TRAIN = "all", "train"


class Curate(Step, name="curate"):
    """Pass rows through data steps that leave out, choose or change them."""

    inputs: ClassVar[dict[str, str]] = {"rows": "examples|documents", "writer?": "model", "encoder?": "model",
                                        "target?": "examples", "tuned?": "adapter|delta|model"}
    output: ClassVar[str] = "examples|documents"
    steps: tuple[Slot[DataStep], ...] = Field((), description="data steps, in this order")
    subsets: tuple[str, ...] = Field((), description="which are changed; none named: all of an unsplit artifact, train of "
                                                     "a split one")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Rows of each subset through the steps. Raises UserError when none is left, or for a subset that is not there."""
        given = inputs["rows"]
        self._check_rows(given)
        ctx.roles = {**ctx.roles, **{n: ctx.engine.load(inputs[n]) for n in ("writer", "encoder") if n in inputs}}
        if {"writer", "tuned"} <= set(inputs):
            ctx.roles = {**ctx.roles, "tuned": ctx.engine.load(inputs["writer"], inputs["tuned"])}
        needed = {role for step in self.steps for role in getattr(step, "roles", ())} - set(ctx.roles)
        if needed - {"writer"}:  # a writer only adds to a filter; the others are asked for
            raise UserError(f"A data step needs the role '{min(needed - {'writer'})}'. Name a model with --base.")
        for name in ("examples", "passages", "documents"):
            shutil.rmtree(ctx.folder / name, ignore_errors=True)  # of an attempt that was killed
        kept: dict[str, int] = {}
        read: Counter[str] = Counter()
        with Ledger(ctx.folder / "ledger.jsonl") as ledger:
            for subset, place, rows in self._rows(given, read):
                changed = self._through(rows, ctx, ledger) if subset in self._changed(given) else rows
                kept[subset] = write_rows(ctx.folder / place, (r.to_dict() for r in changed))
        if not sum(kept[s] for s in self._changed(given)):
            raise UserError(f"No row is left of {sum(read.values())}: {ledger.told()}. See {ctx.folder / 'ledger.jsonl'}.")
        ctx.log(f"{sum(read.values())} rows, {sum(kept.values())} kept; {ledger.told() or 'nothing left out'}")
        copy_licenses([Path(a.folder) for a in inputs.values()], ctx.folder)
        return self._sealed(given, ctx.folder, kept, read, ledger)

    def _check_rows(self, given: Artifact) -> None:
        """Raises UserError for a data step that reads or gives rows of another type than those that are curated."""
        wanted = "Passage" if given.kind == "documents" else "Example"
        for step in self.steps:
            hints = dict(type(step).apply.__annotations__)
            gives, reads = str(hints.pop("return", wanted)), str(next(iter(hints.values()), wanted))
            if not all(re.search(rf"\b{wanted}\b", hint) for hint in (reads, gives)):
                name, rows = step.info.name, "passages of documents" if wanted == "Passage" else "examples"
                raise UserError(f"'{name}' can't curate {rows}: it makes {_rows_of(gives)} from {_rows_of(reads)}. Files are "
                                "read with 'luthier data ingest', questions written with 'luthier data synthesize'. See: "
                                "luthier list data-step")

    def _sealed(self, given: Artifact, folder: Path, kept: dict[str, int], read: Counter[str], ledger: Ledger) -> Artifact:
        about: dict[str, Any] = {"read": sum(read.values()), "dropped": ledger.count, "reasons": dict(ledger.reasons),
                                 "added": sum(kept.values()) + ledger.count - sum(read.values())}
        if given.kind == "documents":
            shutil.copytree(given.folder / "documents", folder / "documents")
            counted = {k: given.meta[k] for k in ("files", "documents", "tokens", "counted_by") if k in given.meta}
            return seal("documents", folder, **counted, passages=kept[WHOLE], **about)
        noted = {k: given.meta[k] for k in ("format", "labels") if given.meta.get(k)}
        return seal("examples", folder, rows=kept, **noted, **about)

    def _changed(self, given: Artifact) -> tuple[str, ...]:
        there = given.subsets if given.kind == "examples" else [WHOLE]
        strange = next((s for s in self.subsets if s not in there), None)
        if strange is not None:
            raise UserError(f"subsets: there is no '{strange}' in {given.folder}. {nearest(strange, there)}")
        return self.subsets or ((TRAIN,) if TRAIN in there else tuple(there))

    def _rows(self, given: Artifact, read: Counter[str]) -> Iterator[tuple[str, str, Iterator[Any]]]:
        """(subset, folder, rows) of everything there is; `read` counts as they are taken."""
        def counted(subset: str, rows: Iterator[Any]) -> Iterator[Any]:
            for row in rows:
                read[subset] += 1
                yield row

        if given.kind == "documents":
            yield WHOLE, "passages", counted(WHOLE, given.passages())
            return
        for subset in given.subsets:
            yield subset, f"examples/{subset}", counted(subset, given.examples(subset))

    def _through(self, rows: Iterator[Any], ctx: Ctx, ledger: Ledger) -> Iterator[Any]:
        """The chain as one stream: each step reads what the one before it lets through."""
        for step in self.steps:
            rows = ledger.kept(step.apply(rows, ctx), step.info.name)
        return rows

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Rows in = rows out + ledger - rows that a step added; rows of the other subsets are all there."""
        given = inputs["rows"]
        subsets = {s: artifact.examples(s) for s in artifact.subsets} if artifact.kind == "examples" else \
            {WHOLE: artifact.passages()}
        kept = {s: sum(1 for _ in rows) for s, rows in subsets.items()}
        found = [receipt("curate/rows", artifact.meta["read"] + artifact.meta["added"],
                         sum(kept.values()) + len(artifact.ledger()), unit="rows", evidence="ledger.jsonl",
                         detail="rows in and rows added against rows kept plus ledger")]
        if given.kind == "examples" and "rows" in given.meta:
            others = [s for s in given.subsets if s not in self._changed(given)]
            found.append(receipt("curate/rows of other subsets", sum(given.meta["rows"][s] for s in others),
                                 sum(kept.get(s, 0) for s in others), unit="rows"))
        return found


def _rows_of(hint: str) -> str:
    """The rows that an annotation names, in words."""
    words = {"SourceFile": "files", "Document": "documents", "Passage": "passages", "Example": "examples"}
    return " or ".join(word for name, word in words.items() if re.search(rf"\b{name}\b", hint)) or "other rows"
