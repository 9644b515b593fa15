"""Compare arms: a table with intervals, and a paired verdict for every pair of arms, set by set."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.errors import UserError
from luthier.core.files import read_lines, write_json, write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.step import Ctx, Step
from luthier.engine import statistics

Values = dict[str, tuple[str, float]]


class CompareArms(Step, name="compare-arms"):
    """Paired comparison of all arms on the questions they share; the verdict is about these models."""

    inputs: ClassVar[dict[str, str]] = {"*": "records"}
    output: ClassVar[str] = "records"
    metrics: tuple[str, ...] = Field(("f1", "exact-match", "accuracy"), description="metrics that are compared, if measured")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")
    margin: float = Field(0.02, gt=0, description="differences within this are called no difference")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Read every arm's scores; Holm over the family of all comparisons of one metric."""
        arms = {a.meta["arm"]: _scores(a) for a in inputs.values()}
        if len(arms) < len(inputs):
            raise UserError("Two arms have the same name.")
        better = {m: up for a in inputs.values() for m, up in a.meta["metrics"].items()}
        sets = list(dict.fromkeys(s for scores in arms.values() for s, _ in scores))
        table = [row for arm, scores in arms.items() for key in scores if (row := self._row(arm, key, scores[key]))]
        findings = []
        for metric in self.metrics:
            family = [self._pair(left, right, metric, s, arms, better.get(metric, True), ctx)
                      for s in sets for left, right in combinations(arms, 2)
                      if arms[left].get((s, metric)) and arms[right].get((s, metric))]
            findings += _holm(family, 1 - self.level)
        write_json(ctx.folder / "table.json", table)
        write_lines(ctx.folder / "findings.jsonl", (f.to_dict() for f in findings))
        return seal("records", ctx.folder, arms=list(arms), sets=sets, level=self.level, margin=self.margin)

    def _row(self, arm: str, key: tuple[str, str], values: Values) -> dict[str, Any] | None:
        if not values:
            return None
        numbers = np.array([v for _, v in values.values()])
        clusters = [c for c, _ in values.values()]
        low, high = statistics.mean_interval(numbers, clusters, self.level) or (None, None)
        return {"arm": arm, "set": key[0], "metric": key[1], "value": float(numbers.mean()), "low": low, "high": high,
                "questions": len(numbers), "clusters": len(set(clusters))}

    def _pair(self, left: str, right: str, metric: str, name: str, arms: Mapping[str, dict[tuple[str, str], Values]],
              higher: bool, ctx: Ctx) -> Finding:
        one, two = arms[left][name, metric], arms[right][name, metric]
        ids = [i for i in one if i in two]
        a, b = (np.array([v[i][1] for i in ids]) for v in (one, two))
        result = statistics.paired(a, b, [one[i][0] for i in ids], margin=self.margin, level=self.level,
                                   seed=ctx.rng.key("paired", f"{metric}/{name}") % 2**32, higher_is_better=higher)
        interval = None if result.low is None or result.high is None else (float(result.low), float(result.high))
        verdict = "no difference" if result.verdict.startswith("no difference") else result.verdict
        return Finding(
            f"compare/{metric}/{name}/{left}|{right}", float(a.mean()), float(b.mean()), float(result.difference),
            verdict, interval=interval, unit=metric, evidence="table.json",  # type: ignore[arg-type]
            detail="this model, over sections",
            extra={"test": result.test, "p": result.p, "clusters": result.clusters, "questions": len(ids),
                   "needed": result.needed, "left_arm": left, "right_arm": right, "metric": metric, "set": name,
                   "margin": self.margin, "level": self.level})

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """All arms answered the same questions."""
        asked = [{(r["set"], r["id"]) for r in read_lines(a.folder / "predictions.jsonl")} for a in inputs.values()]
        return [receipt("arms/same questions", len(set.union(*asked)), len(set.intersection(*asked)), unit="questions",
                        detail="questions that any arm answered against those that all arms answered")]


def _scores(artifact: Artifact) -> dict[tuple[str, str], Values]:
    """(set, metric) -> question id -> (cluster, value), where the metric applies."""
    found: dict[tuple[str, str], Values] = {}
    for row in read_lines(artifact.folder / "scores.jsonl"):
        if row["value"] is not None:
            found.setdefault((row["set"], row["metric"]), {})[row["id"]] = (row["cluster"], float(row["value"]))
    return found


def _holm(family: list[Finding], alpha: float) -> list[Finding]:
    """Adjusted p values; a better or worse that does not survive the family becomes undecided."""
    tested = [f for f in family if f.extra["p"] is not None]
    if not tested:
        return family
    adjusted = dict(zip((f.name for f in tested), statistics.holm([f.extra["p"] for f in tested]), strict=True))
    out = []
    for f in family:
        p = adjusted.get(f.name)
        verdict = "undecided" if f.verdict in ("better", "worse") and p is not None and p > alpha else f.verdict
        out.append(Finding(**{**f.__dict__, "verdict": verdict,
                              "extra": {**f.extra, "p_holm": None if p is None else float(p), "family": len(tested)}}))
    return out
