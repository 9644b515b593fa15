"""Audit: one look for damage, as a step, so that it caches and resumes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.component import Slot, named
from luthier.core.files import write_json, write_lines
from luthier.core.finding import Finding, not_applicable
from luthier.core.kinds import Audit as AuditKind
from luthier.core.step import Ctx, Step
from luthier.engine.subjects import Subject, fields_of


class Audit(Step, name="audit"):
    """Ask the models before and after tuning, or look at data, and say what was found."""

    inputs: ClassVar[dict[str, str]] = {"base?": "model", "tuned?": "adapter|delta|model",
                                        "reference?": "adapter|delta|model", "examples?": "examples"}
    output: ClassVar[str] = "records"
    audit: Slot[AuditKind] = Field(named("forgetting"), description="what is looked for (luthier list audit)")

    def check(self) -> None:
        """Refuse what the audit itself refuses."""
        self.audit.check()

    def content(self) -> dict[str, Any]:
        """The files that the audit reads."""
        return self.audit.content()

    def training(self) -> bool:
        """An audit of data may have to train."""
        return type(self.audit).trains

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Measure, and write `findings.jsonl` beside the audit's own evidence."""
        began = time.monotonic()
        subject = Subject.of(inputs, ctx.engine)
        name = self.audit.info.name
        if subject.kind in type(self.audit).subjects:
            found = self.audit.measure(ctx, subject)
        else:
            found = [not_applicable(f"audit/{name}", f"it looks at {' or '.join(type(self.audit).subjects)}; this is "
                                                     f"{subject.kind}")]
        findings = [self._signed(f, ctx) for f in found]
        write_lines(ctx.folder / "findings.jsonl", (f.to_dict() for f in findings))
        write_json(ctx.folder / "cost.json", {"seconds": time.monotonic() - began})
        return seal("records", ctx.folder, audit=name, settings=self.audit.to_dict(), subject=fields_of(subject))

    def _signed(self, finding: Finding, ctx: Ctx) -> Finding:
        """With the audit's name, whether its limits are hard, what mends it, and where in the run the evidence lies."""
        place = ctx.folder.name.removeprefix(".").removesuffix(".work")
        extra = {"audit": self.audit.info.name, "hard": self.audit.hard, **finding.extra,
                 "mends": existing(type(self.audit).mends)}
        evidence = f"steps/{place}/{finding.evidence}" if finding.evidence else ""
        return replace(finding, extra=extra, evidence=evidence)


def existing(names: tuple[str, ...]) -> list[str]:
    """Those of some components, written "kind name", that there are."""
    from luthier.core.index import rows

    known = {f"{r['kind'].replace('_', ' ')} {r['name']}" for r in rows()}
    return [n for n in names if n.replace("_", " ") in known]
