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
from luthier.pipelines import gains
from luthier.pipelines.alike import count_alike, settle

Values = dict[str, tuple[str, float]]


class CompareArms(Step, name="compare-arms"):
    """Paired comparison of all arms on the questions they share; the verdict is about these models."""

    inputs: ClassVar[dict[str, str]] = {"*": "records"}
    output: ClassVar[str] = "records"
    metrics: tuple[str, ...] = Field(("f1", "exact-match", "accuracy"), description="metrics that are compared, if measured")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")
    margin: float = Field(0.02, gt=0, description="differences within this are called no difference")
    reference: str = Field("base", description="the arm that gains of training are measured from")

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
            findings += holm_family(family, 1 - self.level)
            for part in ("format", "knowledge"):
                findings += holm_family(self._gains(part, metric, arms, better.get(metric, True), ctx), 1 - self.level)
        findings += holm_family(self._brevity(inputs, ctx), 1 - self.level)
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
        result = settle(result, a, b, self.level)
        interval = None if result.low is None or result.high is None else (float(result.low), float(result.high))
        verdict = "no difference" if result.verdict.startswith("no difference") else result.verdict
        return Finding(
            f"compare/{metric}/{name}/{left}|{right}", float(a.mean()), float(b.mean()), float(result.difference),
            verdict, interval=interval, unit=metric, evidence="table.json",  # type: ignore[arg-type]
            detail="this model, over sections",
            extra={"test": result.test, "p": result.p, "clusters": result.clusters, "questions": len(ids),
                   "alike": count_alike(a, b), "needed": result.needed, "left_arm": left, "right_arm": right, "metric": metric,
                   "set": name,
                   "margin": self.margin, "level": self.level})

    def _gains(self, part: str, metric: str, arms: Mapping[str, dict[tuple[str, str], Values]], higher: bool, ctx: Ctx
               ) -> list[Finding]:
        """Format or knowledge gain of every trained arm (see `pipelines.gains`)."""
        found = []
        for left, right in gains.pairs(list(arms), self.reference):
            unseen, known = ([arms[a].get((name, metric)) or {} for a in (left, right)] for name in (gains.UNSEEN, gains.KNOWN))
            if not set.intersection(*map(set, unseen)) or (part == "knowledge" and not set.intersection(*map(set, known))):
                continue
            options: dict[str, Any] = {
                "margin": self.margin, "level": self.level, "higher_is_better": higher,
                "seed": ctx.rng.key("gain", f"{part}/{metric}") % 2**32}
            if part == "format":
                ids = [i for i in unseen[0] if i in unseen[1]]
                a, b = (np.array([v[i][1] for i in ids]) for v in unseen)
                result = settle(statistics.paired(a, b, [unseen[0][i][0] for i in ids], **options), a, b, self.level)
                found.append(gains.finding(part, metric, left, right, (float(a.mean()), float(b.mean())), result, self.level))
            else:
                result = gains.knowledge((known[0], known[1]), (unseen[0], unseen[1]), **options)
                means = [float(np.mean([v[1][i][1] - v[0][i][1] for i in v[0] if i in v[1]])) for v in (unseen, known)]
                found.append(gains.finding(part, metric, left, right, (means[0], means[1]), result, self.level))
        return found

    def _brevity(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> list[Finding]:
        """How much longer or shorter the answers of trained arms are."""
        lengths: dict[str, Values] = {}
        for artifact in inputs.values():
            rows = read_lines(artifact.folder / "predictions.jsonl")
            lengths[artifact.meta["arm"]] = {
                f"{r['set']}/{r['id']}": (f"{r['set']}/{r['cluster']}", float(r["tokens"]))
                for r in rows if r["set"] in (gains.KNOWN, gains.UNSEEN) and "tokens" in r}
        found = []
        for left, right in gains.pairs(list(lengths), self.reference):
            ids = [i for i in lengths[left] if i in lengths[right]]
            if not ids:
                continue
            a, b = (np.array([lengths[arm][i][1] for i in ids]) for arm in (left, right))
            result = statistics.paired(a, b, [lengths[left][i][0] for i in ids], margin=gains.BREVITY_MARGIN,
                                       level=self.level, seed=ctx.rng.key("gain", "brevity") % 2**32, higher_is_better=False)
            result = settle(result, a, b, self.level)
            found.append(gains.finding("brevity", gains.TOKENS, left, right, (float(a.mean()), float(b.mean())), result,
                                       self.level, unit="tokens"))
        return found

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


def holm_family(family: list[Finding], alpha: float) -> list[Finding]:
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
