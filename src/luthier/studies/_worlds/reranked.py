"""reranked: of several questions about one passage and answer those that a metric finds best, as rows to tune on.

The data step `rerank`, with the weights that its metric reads coming through the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.component import Slot, build, named
from luthier.core.example import Dropped, Example
from luthier.core.finding import Finding, receipt
from luthier.core.kinds import DataStep, Metric
from luthier.core.step import Ctx, Step


class Reranked(Step, name="reranked"):
    """Questions that lead to their answer, chosen from several."""

    inputs: ClassVar[dict[str, str]] = {"examples": "examples", "scorer?": "adapter|delta|model", "qa?": "adapter|delta|model"}
    output: ClassVar[str] = "examples"
    subset: str = Field("pool", description="which rows are the candidates")
    metric: Slot[Metric] = Field(named("rquge"), description="what says how good a candidate is")
    keep_best: int = Field(1, ge=1, description="rows of each passage and answer that are kept")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Subset `train`, and a ledger of the others."""
        folders = {name: str(inputs[name].folder) for name in ("scorer", "qa") if name in inputs}
        step: DataStep = build("data_step", {"use": "rerank", "keep_best": self.keep_best,
                                             "metric": {**self.metric.to_dict(), **folders}})
        told = list(step.apply(inputs["examples"].examples(self.subset), ctx))
        kept = [row for row in told if isinstance(row, Example)]
        ctx.log(f"{len(told)} candidates, {len(kept)} kept, {sum(bool(r.meta.get('good')) for r in kept)} of them lead to "
                "their answer")
        return write_examples(ctx.folder, {"train": kept}, [row for row in told if isinstance(row, Dropped)])

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every candidate is kept or in the ledger."""
        kept = sum(1 for _ in artifact.examples("train"))
        return [receipt("reranked/rows", sum(1 for _ in inputs["examples"].examples(self.subset)),
                        kept + len(artifact.ledger()), unit="rows", evidence="ledger.jsonl")]
