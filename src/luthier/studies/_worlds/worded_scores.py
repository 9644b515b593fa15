"""worded-scores: how often the right one of the words that may answer is the likeliest, and how far sureness is from that.

A line a row with `accuracy`, and one with `miscalibration`: the row's share of the expected calibration error of its subset,
whose mean it is; the confidence is the soft-max over the options.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.component import build
from luthier.core.files import write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.kinds import Prediction
from luthier.core.step import Ctx, Step
from luthier.techniques.evaluation.calibration import shares_of_ece

BINS = 10


class WordedScores(Step, name="worded-scores"):
    """Weigh the options of each row of some subsets."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "examples": "examples", "tuned?": "adapter|delta|model"}
    output: ClassVar[str] = "records"
    seeded: ClassVar[bool] = False
    arm: str = Field("tuned", description="name of this arm in tables")
    sets: tuple[str, ...] = Field(("test", "strange"), description="subsets that are asked")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Two lines a row."""
        metric: Any = build("metric", "multiple-choice")
        ctx.roles = {**ctx.roles, "policy": ctx.engine.load(inputs["base"], inputs.get("tuned"))}
        lines = [line for name in self.sets for line in self._lines(name, list(inputs["examples"].examples(name)), metric, ctx)]
        write_lines(ctx.folder / "scores.jsonl", lines)
        return seal("records", ctx.folder, arm=self.arm, metrics={"accuracy": True, "miscalibration": False}, lines=len(lines))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every row has both lines."""
        rows = sum(1 for name in self.sets for _ in inputs["examples"].examples(name))
        return [receipt("worded-scores/lines", 2 * rows, artifact.meta["lines"], unit="lines")]

    def _lines(self, name: str, rows: list[Any], metric: Any, ctx: Ctx) -> list[dict[str, Any]]:
        found = metric.score(rows, [Prediction(e.id) for e in rows], ctx)
        records = []
        for said in found:
            scores = np.array(said["scores"])
            shares = np.exp(scores - np.logaddexp.reduce(scores))
            records.append({"confidence": float(shares.max()), "right": float(said["value"])})
        gaps = shares_of_ece(records, BINS)
        return [{"id": e.id, "set": name, "cluster": e.cluster or e.id, "metric": metric_, "value": value}
                for e, r, gap in zip(rows, records, gaps, strict=True)
                for metric_, value in (("accuracy", r["right"]), ("miscalibration", float(gap)))]
