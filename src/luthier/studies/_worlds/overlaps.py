"""overlaps: which share of a graft's entries another graft changes, too, tensor by tensor where it has any.

`overlap` is |A and B| / |A|, `above-chance` that less |B| / n of a tensor of n entries, which a larger B has by chance alone.
"""

from __future__ import annotations

import math
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

    inputs: ClassVar[dict[str, str]] = {"base": "model", "graft": "delta", "other": "delta"}
    output: ClassVar[str] = "records"
    seeded: ClassVar[bool] = False
    arm: str = Field("overlap", description="name of this arm in tables")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Two lines for each tensor."""
        from luthier.engine.models import folder_of
        from luthier.engine.weight_sources import Stored

        own, other = places(inputs["graft"]), places(inputs["other"])
        sizes = {n: math.prod(spec.shape) for n, spec in Stored(folder_of(inputs["base"])).specs.items()}
        lines = []
        for name, found in own.items():
            also = other.get(name, set())
            overlap = len(found & also) / len(found)
            lines += [{"id": name, "set": "tensors", "cluster": name, "metric": metric, "value": value}
                      for metric, value in (("overlap", overlap), ("above-chance", overlap - len(also) / sizes[name]))]
        write_lines(ctx.folder / "scores.jsonl", lines)
        return seal("records", ctx.folder, arm=self.arm, metrics={"overlap": True, "above-chance": True}, lines=len(lines))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every tensor of the graft has both lines."""
        return [receipt("overlaps/lines", 2 * len(places(inputs["graft"])), artifact.meta["lines"], unit="lines")]
