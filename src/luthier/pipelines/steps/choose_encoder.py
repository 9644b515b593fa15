"""choose-encoder: base or tuned? Both answer the same queries; dev decides, the tests are opened after that.

Keeping the base is an outcome like the other. Each encoder is asked through its own index, as the run uses it and, where
the retriever fuses several lists, by meaning alone as well: a fusion hides part of what an encoder gained or lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact
from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.files import read_lines, write_json, write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.kinds import Metric, Prediction, Retriever
from luthier.core.step import Ctx, Step
from luthier.engine import statistics
from luthier.pipelines.alike import count_alike, settle
from luthier.pipelines.steps.index import open_retriever
from luthier.pipelines.steps.whole_model import same_files

SIDES = ("base", "tuned")
# Of each (set, way, metric): the values by question id, for both sides.
Scores = dict[tuple[str, str, str], dict[str, dict[str, float]]]


class ChooseEncoder(Step, name="choose-encoder"):
    """Measure the base and the tuned encoder on the same queries and leave the one that dev prefers."""

    inputs: ClassVar[dict[str, str]] = {
        "base": "model", "tuned": "model", "index": "index", "tuned-index": "index", "examples": "examples"}
    output: ClassVar[str] = "model"
    metrics: tuple[Slot[Metric], ...] = Field(named(("ndcg", "recall", "mrr")), description="what is measured")
    choose_by: Slot[Metric] = Field(named("ndcg"), description="the metric on dev that decides")
    least_gain: float = Field(0.0, ge=0, description="the tuned encoder must be better by more than this to be taken")
    sets: tuple[str, ...] = Field(("known", "unseen"), description="test subsets that are measured after the choice")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")
    margin: float = Field(0.02, gt=0, description="differences within this are called no difference")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Search dev with both, choose, then search the test sets with both.

        Raises:
            UserError: dev has no question with a passage that answers it.
        """
        examples = inputs["examples"]
        dev = _answerable(examples, "dev")
        if not dev:
            raise UserError("No question of dev has a passage that answers it (meta.gold): there is nothing to choose by.")
        scores: Scores = {}
        clusters: dict[str, str] = {}
        self._measure("dev", dev, inputs, ctx, scores, clusters)
        finding = self._pair(("dev", "as used", self.choose_by.info.name), scores, clusters, ctx)
        gain = finding.difference if self.choose_by.higher_is_better else -(finding.difference or 0.0)
        chosen = "tuned" if gain is not None and gain > self.least_gain else "base"
        words = _words(chosen, finding, self.least_gain)
        ctx.log(words)
        tests = {name: rows for name in self.sets if name in examples.subsets and (rows := _answerable(examples, name))}
        if tests:
            ctx.log(f"test opened: {sum(map(len, tests.values()))} queries of {', '.join(tests)} by both encoders")
        for name, rows in tests.items():
            self._measure(name, rows, inputs, ctx, scores, clusters)
        found = [self._pair(key, scores, clusters, ctx) for key in scores]
        write_json(ctx.folder / "table.json", list(self._table(scores, clusters)))
        write_lines(ctx.folder / "scores.jsonl", (
            {"set": s, "way": way, "metric": metric, "encoder": side, "id": i, "cluster": clusters[i], "value": value}
            for (s, way, metric), sides in scores.items() for side, values in sides.items() for i, value in values.items()))
        write_lines(ctx.folder / "findings.jsonl", (f.to_dict() for f in found))
        return same_files(inputs[chosen], ctx, chosen=chosen, words=words, choice=finding.to_dict())

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Both encoders answered the same queries."""
        rows = read_lines(artifact.folder / "scores.jsonl")
        base, tuned = ({(r["set"], r["way"], r["metric"], r["id"]) for r in rows if r["encoder"] == side} for side in SIDES)
        return [receipt("choose-encoder/same queries", len(base | tuned), len(base & tuned), unit="values",
                        detail="scores of either encoder against those of both")]

    def _measure(self, name: str, rows: Sequence[Example], inputs: Mapping[str, Artifact], ctx: Ctx, scores: Scores,
                 clusters: dict[str, str]) -> None:
        """Search with both encoders and keep every metric's values."""
        clusters.update({e.id: e.cluster or e.id for e in rows})
        metrics = list({m.info.name: m for m in (*self.metrics, self.choose_by)}.values())
        depth = max(10, *(getattr(m, "k", 0) for m in metrics))
        for side, index in zip(SIDES, (inputs["index"], inputs["tuned-index"]), strict=True):
            inner = replace(ctx, roles={**ctx.roles, "encoder": ctx.engine.load(inputs[side])})
            for way, retriever in _ways(open_retriever(index)).items():
                hits = retriever.search(index, [e.part("question") for e in rows], depth, inner)
                said = [Prediction(e.id, passages=tuple(p.id for p, _ in found)) for e, found in zip(rows, hits, strict=True)]
                for metric, records in ctx.engine.evaluate(rows, said, metrics, ctx).items():
                    values = {r["id"]: float(r["value"]) for r in records if r["value"] is not None}
                    scores.setdefault((name, way, metric), {})[side] = values

    def _pair(self, key: tuple[str, str, str], scores: Scores, clusters: Mapping[str, str], ctx: Ctx) -> Finding:
        """The tuned encoder against the base on the queries of one set."""
        name, way, metric = key
        sides = scores[key]
        ids = list(sides["base"])
        left, right = (np.array([sides[side][i] for i in ids]) for side in SIDES)
        higher = next(m.higher_is_better for m in (*self.metrics, self.choose_by) if m.info.name == metric)
        result = statistics.paired(left, right, [clusters[i] for i in ids], margin=self.margin, level=self.level,
                                   seed=ctx.rng.key("paired", f"{metric}/{name}/{way}") % 2**32, higher_is_better=higher)
        result = settle(result, left, right, self.level)
        interval = None if result.low is None or result.high is None else (float(result.low), float(result.high))
        verdict = "no difference" if result.verdict.startswith("no difference") else result.verdict
        return Finding(f"retriever/{metric}/{name}/{way}", float(left.mean()), float(right.mean()), float(result.difference),
                       verdict, interval=interval, unit=metric, evidence="table.json",  # type: ignore[arg-type]
                       detail="these two encoders, over sections",
                       extra={"left_arm": "base encoder", "right_arm": "tuned encoder", "metric": metric, "set": name,
                              "way": way, "p": result.p, "test": result.test, "clusters": result.clusters,
                              "questions": len(ids), "alike": count_alike(left, right),
                              "needed": result.needed, "margin": self.margin, "level": self.level})

    def _table(self, scores: Scores, clusters: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        for (name, way, metric), sides in scores.items():
            for side, values in sides.items():
                numbers, groups = np.array(list(values.values())), [clusters[i] for i in values]
                low, high = statistics.mean_interval(numbers, groups, self.level) or (None, None)
                yield {"encoder": side, "set": name, "way": way, "metric": metric, "value": float(numbers.mean()),
                       "low": low, "high": high, "questions": len(numbers), "clusters": len(set(groups))}


def _answerable(examples: Artifact, name: str) -> list[Example]:
    """The questions of a subset that some passage answers."""
    return [e for e in examples.examples(name) if e.meta.get("gold")] if name in examples.subsets else []


def _ways(retriever: Retriever) -> dict[str, Retriever]:
    """The retriever as it is used, and by meaning alone where it can do without words."""
    fields = type(retriever).model_fields
    fused = {"vector", "text"} <= set(fields) and getattr(retriever, "text", False) and getattr(retriever, "vector", False)
    return {"as used": retriever, **({"by meaning": retriever.model_copy(update={"text": False})} if fused else {})}


def _words(chosen: str, found: Finding, least: float) -> str:
    """The choice as a sentence."""
    low, high = found.interval or (None, None)
    span = f", {low:+.3f} to {high:+.3f}" if low is not None and high is not None and np.isfinite([low, high]).all() else ""
    taken = "Take the tuned encoder" if chosen == "tuned" else "Keep the base encoder"
    wanted = f", and more than {least:g} was asked for" if chosen == "base" and least else ""
    return (f"{taken}: on {found.extra['questions']} dev queries {found.unit} is {found.left:.3f} with the base and "
            f"{found.right:.3f} with the tuned one (difference {found.difference:+.3f}{span}; {found.verdict}){wanted}.")
