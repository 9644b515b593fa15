"""ranked: how often a metric puts the better of two rows above the worse, question by question.

Rows of one cluster in one subset belong together; `meta["good"]` says which are good, `meta["said"]` is the answer that is
rated (nothing where the metric finds its own) and `meta["shown"]` the passages that it was given. With scores m,

    value of a cluster = mean over its good rows g and bad rows b of  1 if m(g) > m(b), 1/2 if equal, 0 if below

which is the AUROC within the cluster; a row for which the metric has no value counts as lowest. What the metric reads from
models comes through the inputs: fields that name a folder of weights (`scorer`, `qa`, `model`) are filled with them.

Of the subsets in `rated` the metric's own values are kept, a line each row, such as those of answers that are all right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.component import Slot, build, named
from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.files import write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx, Step

NAME = "ranks-right"


class Ranked(Step, name="ranked"):
    """Score rows of known worth with a metric, and compare within each question."""

    inputs: ClassVar[dict[str, str]] = {"examples": "examples", "scorer?": "adapter|delta|model", "qa?": "adapter|delta|model",
                                        "model?": "adapter|delta|model", "encoder?": "model"}
    output: ClassVar[str] = "records"
    arm: str = Field("metric", description="name of this arm in tables")
    metric: Slot[Metric] = Field(named("token-recall"), description="what scores the rows")
    sets: tuple[str, ...] = Field((), description="subsets that are compared; all when neither these nor `rated` are named")
    rated: tuple[str, ...] = Field((), description="subsets whose rows keep the metric's own value")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """`scores.jsonl` has a line for each cluster of each subset, and for each row of those that are rated.

        Raises:
            UserError: a cluster without good or bad rows, or a rated row for which the metric has no value.
        """
        folders = {name: str(inputs[name].folder) for name in ("scorer", "qa", "model") if name in inputs}
        metric: Metric = build("metric", {**self.metric.to_dict(), **folders}) if folders else self.metric
        if "encoder" in inputs:
            ctx.roles = {**ctx.roles, "encoder": ctx.engine.load(inputs["encoder"])}
        lines: list[dict[str, Any]] = []
        for name, alone in (*((n, False) for n in self._compared(inputs)), *((n, True) for n in self.rated)):
            rows = list(inputs["examples"].examples(name))
            said = [Prediction(r.id, text=str(r.meta.get("said", "")), shown=tuple(r.meta.get("shown", ()))) for r in rows]
            records = metric.score(rows, said, ctx)
            values = {str(r["id"]): r["value"] for r in records}
            found = _rated(name, rows, values) if alone else _compared(name, rows, values)
            kind = metric.info.name if alone else NAME
            lines += [{"id": f"{name}/{key}", "set": name, "cluster": cluster, "metric": kind, "value": value}
                      for key, (cluster, value) in found.items()]
        write_lines(ctx.folder / "scores.jsonl", lines)
        kinds = dict.fromkeys((line["metric"] for line in lines), metric.higher_is_better)
        return seal("records", ctx.folder, arm=self.arm, metrics=kinds, lines=len(lines))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every cluster of every compared subset has a line, and every row of the rated ones."""
        wanted = sum(len({r.cluster for r in inputs["examples"].examples(name)}) for name in self._compared(inputs))
        wanted += sum(1 for name in self.rated for _ in inputs["examples"].examples(name))
        return [receipt("ranked/clusters", wanted, artifact.meta["lines"], unit="clusters and rated rows")]

    def _compared(self, inputs: Mapping[str, Artifact]) -> list[str]:
        return [*(self.sets or (() if self.rated else inputs["examples"].subsets))]


def _rated(name: str, rows: Sequence[Example], values: Mapping[str, float | None]) -> dict[str, tuple[str, float]]:
    """Row -> its cluster and value."""
    found = {}
    for row in rows:
        value = values[row.id]
        if value is None:
            raise UserError(f"ranked: the metric has no value for {row.id} of {name}, whose rows are rated.")
        found[row.id] = (row.cluster, value)
    return found


def _compared(name: str, rows: Sequence[Example], values: Mapping[str, float | None]) -> dict[str, tuple[str, float]]:
    """Cluster -> itself and the share of its pairs in the right order."""
    found = {}
    for cluster in dict.fromkeys(r.cluster for r in rows):
        good, bad = ([float("-inf") if (v := values[r.id]) is None else v for r in rows
                      if r.cluster == cluster and bool(r.meta["good"]) is side] for side in (True, False))
        if not good or not bad:
            raise UserError(f"ranked: {cluster} of {name} has {len(good)} good and {len(bad)} bad rows; it needs both.")
        found[cluster] = (cluster, sum((g > b) + (g == b) / 2 for g in good for b in bad) / (len(good) * len(bad)))
    return found
