"""Format rows: what a data step makes of the passages that may be learned, divided as the questions were.

Several formats of the same documents (paragraphs, keywords to paragraph, code summaries) can be compared only where they
are trained on the same sections and tested on the same questions. So the rows come from the sections of the split that
are not its unseen test, those of its dev questions become dev, and the others train. The data step never sees a
passage of an unseen section: neither its words nor their frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, write_examples
from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example
from luthier.core.finding import Finding, receipt
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx, Step
from luthier.pipelines.ledger import without_dropped


class FormatRows(Step, name="format-rows"):
    """Training rows of one format, from the sections that the questions of a split leave for training."""

    inputs: ClassVar[dict[str, str]] = {"documents": "documents", "examples": "examples", "writer?": "model"}
    output: ClassVar[str] = "examples"
    format: Slot[DataStep] = Field(named("paragraphs"), description="what is made of the passages")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Subsets train and dev. Raises UserError for a format without its model, or one that leaves nothing to train on."""
        split = inputs["examples"]
        unseen, dev = ({e.cluster for e in split.examples(n)} if n in split.subsets else set() for n in ("unseen", "dev"))
        if "writer" in inputs:
            ctx.roles = {**ctx.roles, "writer": ctx.engine.load(inputs["writer"])}
        missing = [r for r in getattr(self.format, "asks", self.format.roles) if r not in ctx.roles]
        if missing:
            raise UserError(f"The format {self.format.info.name} needs a {missing[0]}: give its step the input "
                            f"{{{missing[0]}: base}}.")
        ledger: list[Dropped] = []
        passages = (p for p in inputs["documents"].passages() if p.section not in unseen)
        rows: list[Example] = list(without_dropped(self.format.apply(passages, ctx), ledger))
        subsets = {"train": [r for r in rows if r.cluster not in dev], "dev": [r for r in rows if r.cluster in dev]}
        if not subsets["train"]:
            raise UserError(f"{self.format.info.name} makes no training row of these documents"
                            + (f"; the first reason: {ledger[0].reason}." if ledger else ".") + " Name another format.")
        copy_licenses([Path(a.folder) for a in inputs.values()], ctx.folder)
        return write_examples(ctx.folder, subsets, ledger, made=len(rows))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Rows made = rows kept; no row of an unseen section, and no training row of a dev section."""
        split = inputs["examples"]
        unseen, dev = ({e.cluster for e in split.examples(n)} if n in split.subsets else set() for n in ("unseen", "dev"))
        train, watched = (list(artifact.examples(n)) for n in ("train", "dev"))
        crossed = sum(e.cluster in unseen for e in (*train, *watched)) + sum(e.cluster in dev for e in train)
        return [receipt("format-rows/rows", artifact.meta["made"], len(train) + len(watched), unit="rows"),
                receipt("format-rows/sections kept out", 0, crossed, unit="rows", detail="rows of sections that are tested")]
