"""Sections: the documents as texts to be read on, for continued pretraining.

A text is one section: its headings, then its passages. Sections of the unseen test set are left out, so that the arm
that has read the documents meets them as new as every other arm does; those of the dev questions are kept for
validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, write_examples
from luthier.core.component import Slot
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, Passage, Turn
from luthier.core.finding import Finding, receipt
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx, Step


class Sections(Step, name="sections"):
    """Sections of the documents as texts, those of the unseen test left out."""

    inputs: ClassVar[dict[str, str]] = {"documents": "documents", "examples": "examples", "writer?": "model"}
    output: ClassVar[str] = "examples"
    augment: tuple[Slot[DataStep], ...] = Field((), description="applied to the texts that are trained on")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """One example a section. Raises UserError when no section is left to read."""
        split = inputs["examples"]
        unseen, dev = ({e.cluster for e in split.examples(n)} if n in split.subsets else set() for n in ("unseen", "dev"))
        sections: dict[str, list[Passage]] = {}
        for passage in inputs["documents"].passages():
            sections.setdefault(passage.section, []).append(passage)
        subsets: dict[str, list[Example]] = {"train": [], "dev": []}
        ledger = []
        for name, passages in sections.items():
            if name in unseen:
                ledger.append(Dropped(name, "section of the unseen test", f"{len(passages)} passages"))
                continue
            text = "\n\n".join([" / ".join(passages[0].headings), *(p.text for p in passages)]).strip()
            made = Example(name, (Turn("user", (Part(text, name="text"),)),), task="text", cluster=name,
                           source=passages[0].document)
            subsets["dev" if name in dev else "train"].append(made)
        if not subsets["train"]:
            raise UserError("No section is left to read on: all of them have dev or unseen questions. Add documents.")
        if "writer" in inputs:
            ctx.roles = {"writer": ctx.engine.load(inputs["writer"])}
        for step in self.augment:
            rows = list(step.apply(iter(subsets["train"]), ctx))
            subsets["train"] = [r for r in rows if isinstance(r, Example)]
            ledger += [r for r in rows if isinstance(r, Dropped)]
        copy_licenses([Path(inputs["documents"].folder)], ctx.folder)
        return write_examples(ctx.folder, {n: rows for n, rows in subsets.items() if rows}, ledger, read=len(sections))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Sections in = texts + ledger; none of the unseen test is read."""
        texts = {n: list(artifact.examples(n)) for n in artifact.subsets}
        split = inputs["examples"]
        unseen = {e.cluster for e in split.examples("unseen")} if "unseen" in split.subsets else set()
        read = sum(e.cluster in unseen for rows in texts.values() for e in rows)
        own = sum("paraphrase_of" not in e.meta for rows in texts.values() for e in rows)
        counted = own + sum(not d["id"].startswith("paraphrase/") for d in artifact.ledger())
        return [receipt("sections/rows", len({p.section for p in inputs["documents"].passages()}), counted,
                        unit="sections", detail="sections of the documents against texts plus ledger"),
                receipt("sections/unseen sections read", 0, read, unit="sections")]
