"""one-subset: the rows of one subset of a world as rows that are not divided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.step import Ctx, Step


class OneSubset(Step, name="one-subset"):
    """Hand on one subset as `all`."""

    inputs: ClassVar[dict[str, str]] = {"examples": "examples"}
    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    subset: str = Field("train", description="which one")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Write it."""
        return write_examples(ctx.folder, {"all": inputs["examples"].examples(self.subset)})
