"""overlaps: which share of a graft's entries another graft changes, too, tensor by tensor: |A and B| / |A| where A has any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.files import write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.as_many import places


class Overlaps(Step, name="overlaps"):
    """Compare two grafts of one base."""

    inputs: ClassVar[dict[str, str]] = {"graft": "delta", "other": "delta"}
    output: ClassVar[str] = "records"
    seeded: ClassVar[bool] = False
    arm: str = Field("overlap", description="name of this arm in tables")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """A line for each tensor."""
        own, other = places(inputs["graft"]), places(inputs["other"])
        write_lines(ctx.folder / "scores.jsonl", (
            {"id": name, "set": "tensors", "cluster": name, "metric": "overlap",
             "value": len(found & other.get(name, set())) / len(found)} for name, found in own.items()))
        return seal("records", ctx.folder, arm=self.arm, metrics={"overlap": True}, lines=len(own))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every tensor of the graft has a line."""
        return [receipt("overlaps/tensors", len(places(inputs["graft"])), artifact.meta["lines"], unit="tensors")]
