"""few-shots: so many reviews of each label of a world to learn from, drawn by the seed of the training, and others to test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.step import Ctx, Step


class FewShots(Step, name="few-shots"):
    """A draw of `train`, and a `test` that is the same in every draw."""

    inputs: ClassVar[dict[str, str]] = {"examples": "examples"}
    output: ClassVar[str] = "examples"
    trains: ClassVar[bool] = True  # which rows are drawn is the chance that a method is judged over
    shots: int = Field(8, ge=1, description="rows of each label")
    label: Literal["sentiment", "domain"] = Field("sentiment",
                                                  description="what is to be told: good or bad, or what is reviewed")
    tests: int = Field(300, ge=1, description="rows of the test, the last ones")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError where there are too few rows."""
        rows = list(inputs["examples"].examples("all"))
        if self.label == "domain":
            rows = [replace(e, label=e.source) for e in rows]
        # In a fixed order that mixes domains and labels, so that the last rows are of all kinds.
        rows = sorted(rows, key=lambda e: (int(e.id.rpartition("/")[2]), e.id))
        given, tested = rows[:-self.tests], rows[-self.tests:]
        train = []
        for label in sorted({str(e.label) for e in rows}):
            own = [e for e in given if str(e.label) == label]
            if len(own) < self.shots:
                raise UserError(f"few-shots: {len(own)} rows of '{label}' are left beside the test; {self.shots} are wanted.")
            train += [own[i] for i in ctx.rng(f"shots/{label}").permutation(len(own))[:self.shots]]
        return write_examples(ctx.folder, {"train": train, "test": tested}, labels=sorted({str(e.label) for e in rows}))
