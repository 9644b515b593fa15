"""Synthesize: questions with answers from documents, written by several sources and filtered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, write_examples
from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example
from luthier.core.files import write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx, Step
from luthier.pipelines.ledger import reason_of, without_dropped
from luthier.techniques.data._questions import spread


class Synthesize(Step, name="synthesize"):
    """Write questions from passages with each source, then pass them through the filters."""

    inputs: ClassVar[dict[str, str]] = {"documents": "documents", "writer?": "model", "tuned-writer?": "adapter|delta|model",
                                          "encoder?": "model"}
    output: ClassVar[str] = "examples"
    sources: tuple[Slot[DataStep], ...] = Field(named(("headings", "few-shot")), description="who writes questions")
    filters: tuple[Slot[DataStep], ...] = Field(named(("self-contained", "answerable", "distinct")),
                                                description="what is left out, in this order")
    most_per_source: int | None = Field(None, ge=1, description="of a source that wrote more, so many rows are drawn, "
                                                                "spread over sections")

    def check(self) -> None:
        """Refuse a source that is named twice: its rows would have the same ids."""
        for name, count in Counter(source.info.name for source in self.sources).items():
            if count > 1:
                raise UserError(f"sources names '{name}' {count} times; name each source once.")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Every source over all passages, then every filter over all rows; the ledger holds what was left out."""
        if "writer" in inputs:
            ctx.roles = {**ctx.roles, "writer": ctx.engine.load(inputs["writer"], inputs.get("tuned-writer"))}
        elif "tuned-writer" in inputs:
            raise UserError("tuned-writer needs its base: inputs: {writer: base, tuned-writer: tuned}.")
        elif any("writer" in getattr(source, "asks", source.roles) for source in self.sources):
            raise UserError("A source needs a writer model: inputs: {documents: documents, writer: base}.")
        if "encoder" in inputs:
            ctx.roles = {**ctx.roles, "encoder": ctx.engine.load(inputs["encoder"])}
        ledger: list[Dropped] = []
        yields: dict[str, Counter[str]] = {}
        rows: list[Example] = []
        for source in self.sources:
            made = list(without_dropped(source.apply(inputs["documents"].passages(), ctx), ledger))
            name = source.info.name
            yields[name] = Counter(written=len(made) + sum(d.id.startswith(f"{name}/") for d in ledger), parsed=len(made))
            if self.most_per_source is not None and len(made) > self.most_per_source:
                drawn = spread(made, lambda row: row.cluster, self.most_per_source, ctx.rng.within(name))
                yields[name]["drawn"], kept = len(drawn), {row.id for row in drawn}
                ledger += [Dropped(row.id, "more than most_per_source") for row in made if row.id not in kept]
                made = [row for row in made if row.id in kept]
            rows += made
        for step in self.filters:
            rows = list(without_dropped(step.apply(iter(rows), ctx), ledger))
            for name, counts in yields.items():
                counts[step.info.name] = sum(r.meta["generator"] == name for r in rows)
        for name, counts in yields.items():
            ctx.log(f"{name}: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
        if not rows:
            why = ctx.folder / "ledger.jsonl"
            write_lines(why, ({"id": d.id, "reason": d.reason, "detail": d.detail} for d in ledger))
            raise UserError(self._nothing(inputs["documents"], yields, ledger) + f" See {why}.")
        copy_licenses([Path(a.folder) for a in inputs.values()], ctx.folder)
        written = sum(c["written"] for c in yields.values())
        return write_examples(ctx.folder, {"all": rows}, ledger, written=written,
                              yields={n: dict(c) for n, c in yields.items()})

    def _nothing(self, documents: Artifact, yields: Mapping[str, Mapping[str, int]], ledger: Sequence[Dropped]) -> str:
        """Why there is no question, and what to do about it."""
        writers, passages = ", ".join(yields), documents.meta.get("passages", 0)
        if not any(counts["written"] for counts in yields.values()):
            return (f"No question could be written from {passages} passage(s) by {writers}: there is too little text, or "
                    "it has no headings and definitions. Give more documents, or another writer (luthier list data-step).")
        why = Counter(reason_of(d.reason) for d in ledger).most_common(3)
        told = ", ".join(f"{reason} ({n})" for reason, n in why)
        return (f"No question is left after the filters; most were left out as: {told}. Give more documents, a larger writer "
                "(--base), or fewer filters (--set questions.filters=[self-contained, distinct]).")

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Questions written = questions kept + ledger."""
        kept = sum(1 for _ in artifact.examples("all")) + len(artifact.ledger())
        return [receipt("synthesize/rows", artifact.meta["written"], kept, unit="rows",
                        detail="questions written against questions kept plus ledger")]

