"""Majority: the label most training rows have, for every row. What a classifier must beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact
from luthier.core.component import Slot, named
from luthier.core.finding import Finding
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx, Step
from luthier.pipelines.steps.evaluate import Evaluate


class Majority(Step, name="majority"):
    """Answer every row with the commonest label of the training rows."""

    inputs: ClassVar[dict[str, str]] = {"examples": "examples"}
    output: ClassVar[str] = "records"
    seeded: ClassVar[bool] = False
    arm: str = Field("majority label", description="name of this arm in tables")
    sets: tuple[str, ...] = Field(("unseen",), description="subsets that are asked, if they exist")
    metrics: tuple[Slot[Metric], ...] = Field(named(("accuracy",)), description="what is measured")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Count, answer, score."""
        examples = inputs["examples"]
        counts = Counter(str(e.label) for e in examples.examples("train"))
        label = min(counts, key=lambda name: (-counts[name], name))
        rows = [(s, e) for s in self.sets if s in examples.subsets for e in examples.examples(s)]
        shares = {name: n / sum(counts.values()) for name, n in counts.items()}
        predictions = [Prediction(e.id, label=label, probabilities=shares) for _, e in rows]
        writer = Evaluate(arm=self.arm, sets=self.sets, metrics=self.metrics)
        return writer._write(ctx, rows, predictions, prompting={}, tried=[], prompt_tokens=0, new_tokens=0, seconds=0.0)

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every row has one answer and one record of each metric."""
        return Evaluate(arm=self.arm, sets=self.sets, metrics=self.metrics).receipts(inputs, artifact, ctx)
