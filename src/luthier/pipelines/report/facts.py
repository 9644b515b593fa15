"""What the report is made of, read from a run's folder. Whatever is absent stays empty; nothing is guessed."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from luthier.core.artifact import MODEL_KINDS, Artifact
from luthier.core.example import Passage
from luthier.core.files import read_json, read_lines
from luthier.core.finding import Finding
from luthier.core.run import Run
from luthier.engine.steps.fit import CURVE
from luthier.pipelines.gains import GAIN
from luthier.pipelines.report.words import arm_order, metric_order, set_order

COMPARISON = "compare/"
RETRIEVER = "retriever/"
AUDIT = "audit/"
NO_RECEIPT = (COMPARISON, GAIN, RETRIEVER, AUDIT)
_OPENED = re.compile(r"^(\S+) (?:\[(.+?)\] )?test opened: (.+)$")


@dataclass(frozen=True)
class Arm:
    """One evaluated arm: its name, the record of its evaluation, what it answered and the scores."""

    name: str
    meta: dict[str, Any]
    predictions: list[dict[str, Any]]
    scores: dict[tuple[str, str], dict[str, Any]]  # (set, question id) -> {metric: value}
    clusters: dict[tuple[str, str], str]


@dataclass(frozen=True)
class Facts:
    """The finished steps of a run by what they hold."""

    run: Run
    record: dict[str, Any]
    recipe: dict[str, Any]
    recipe_text: str
    steps: dict[str, dict[str, Any]]
    artifacts: dict[str, Artifact]
    findings: list[Finding]

    def of_kind(self, *kinds: str) -> dict[str, Artifact]:
        """Artifacts of some kinds by the name of their step."""
        return {n: a for n, a in self.artifacts.items() if a.kind in kinds}

    def of_use(self, use: str) -> dict[str, Artifact]:
        """Artifacts left by one component."""
        return {n: a for n, a in self.artifacts.items() if self.steps[n].get("use") == use}

    @cached_property
    def cluster(self) -> str:
        """What a cluster is here: a section of the documents, or whatever the user's rows are grouped by."""
        return "section" if self.of_kind("documents") else "cluster"

    @cached_property
    def unfinished(self) -> list[str]:
        """Steps of the recipe that left nothing yet; a step that writes the report is not waited for."""
        planned = self.recipe.get("steps") or {}
        waited = [n for n, s in planned.items() if not (isinstance(s, dict) and s.get("use") == "report")]
        return [n for n in waited if n not in self.artifacts]

    @cached_property
    def base(self) -> dict[str, Any]:
        """Name, note and identity of the base, as far as any step tells."""
        told = [a.meta.get("base") for a in self.artifacts.values()]
        told += [a.meta for a in self.of_use("base").values()]
        found: dict[str, Any] = {}
        for entry in told:
            found = {**({"name": entry} if isinstance(entry, str) else entry or {}), **found}
        return found

    @cached_property
    def fits(self) -> dict[str, Artifact]:
        """Steps that trained something."""
        return {n: a for n, a in self.of_kind(*MODEL_KINDS).items() if isinstance(a.meta.get("fit"), dict)}

    @cached_property
    def under_way(self) -> dict[str, Path]:
        """Trainings that have not ended by name: the file in which their curve grows."""
        found = sorted((self.run.folder / "steps").glob(f".*.work/{CURVE}"))
        return {path.parent.name[1:].removesuffix(".work"): path for path in found}

    @cached_property
    def arms(self) -> list[Arm]:
        """Evaluated arms in their order."""
        return sorted((_arm(n, a) for n, a in self.of_use("evaluate").items()), key=lambda a: arm_order(a.name))

    @cached_property
    def comparisons(self) -> list[Finding]:
        """Paired comparisons by metric, set and pair of arms."""
        found = [_named(f) for f in self.findings if f.name.startswith(COMPARISON)]
        return sorted(found, key=_comparison_order)

    @cached_property
    def receipts(self) -> list[Finding]:
        """All other findings."""
        return [f for f in self.findings if not f.name.startswith(NO_RECEIPT)]

    @cached_property
    def gains(self) -> list[Finding]:
        """Format, knowledge and brevity gains of the trained arms."""
        return [f for f in self.findings if f.name.startswith(GAIN)]

    @cached_property
    def audits(self) -> list[Finding]:
        """Findings of this run's own audits; those of `RUN/audit` are a run of their own."""
        return [f for f in self.findings if f.name.startswith(AUDIT)]

    @cached_property
    def table(self) -> list[dict[str, Any]]:
        """Arms by set and metric with intervals; means of the scores alone where no comparison was finished."""
        tables = [a.folder / "table.json" for a in self.of_use("compare-arms").values()]
        rows = [row for path in tables if path.exists() for row in read_json(path)]
        return rows or [row for arm in self.arms for row in _means(arm)]

    @cached_property
    def directions(self) -> dict[str, bool]:
        """Whether more is better, by metric."""
        told = (a.meta.get("metrics") for a in self.of_use("evaluate").values())
        return {m: up for metrics in told if isinstance(metrics, dict) for m, up in metrics.items()}

    @cached_property
    def openings(self) -> Any:
        """Openings of the test set, as the record or the log has them."""
        path = self.run.folder / "log.txt"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        told = [m.groups() for line in lines if (m := _OPENED.match(line))]
        return self.record.get("openings") or [{"when": w, "step": s or "", "what": t} for w, s, t in told]

    @cached_property
    def sets(self) -> list[str]:
        """Names of the sets of questions."""
        names = {str(r.get("set")) for r in self.table} | {str(p.get("set")) for a in self.arms for p in a.predictions}
        return sorted(names, key=set_order)

    def passages(self, ids: set[str]) -> dict[str, Passage]:
        """The passages with these ids; the shards are read through once."""
        documents = self.of_kind("documents").values() if ids else ()
        return {p.id: p for a in documents for p in a.passages() if p.id in ids}


def gather(run: Run) -> Facts:
    """Open every finished step of a run."""
    path = run.folder / "recipe.yaml"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    steps = {n: s for n, s in run.steps().items() if run.has(n)}
    artifacts = {n: run.step(n) for n in steps}
    return Facts(run, run.record, yaml.safe_load(text) or {}, text, steps, artifacts, run.findings())


def primary(metrics: Iterable[str], name: str = "") -> str:
    """The metric that answers for a set: abstaining where nothing can be answered, else the first in order."""
    found = sorted(set(metrics), key=metric_order)
    if name == "unanswerable" and "abstains" in found:
        return "abstains"
    return found[0] if found else ""


def _arm(step: str, artifact: Artifact) -> Arm:
    scores: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    clusters = {}
    for row in read_lines(artifact.folder / "scores.jsonl"):
        key = (str(row.get("set")), str(row.get("id")))
        scores[key][str(row.get("metric"))] = row.get("value")
        clusters[key] = str(row.get("cluster"))
    predictions = read_lines(artifact.folder / "predictions.jsonl")
    return Arm(str(artifact.meta.get("arm") or step), artifact.meta, predictions, dict(scores), clusters)


def _means(arm: Arm) -> list[dict[str, Any]]:
    """Rows of the table for one arm without a comparison: means, no intervals."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    clusters: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for (name, question), scored in arm.scores.items():
        for metric, value in scored.items():
            if value is not None:
                values[name, metric].append(value)
                clusters[name, metric][arm.clusters[name, question]] += 1
    return [
        {"arm": arm.name, "set": name, "metric": metric, "value": sum(v) / len(v), "low": None, "high": None,
         "questions": len(v), "clusters": len(clusters[name, metric])}
        for (name, metric), v in values.items()
    ]


def _named(finding: Finding) -> Finding:
    """A comparison whose metric, set and arms stand in `extra`, taken from its name where they do not."""
    metric, _, rest = finding.name.removeprefix(COMPARISON).partition("/")
    name, _, arms = rest.partition("/")
    left, _, right = arms.partition("|")
    told = {"metric": metric, "set": name, "left_arm": left, "right_arm": right}
    return Finding.from_dict({**finding.to_dict(), "extra": {**told, **finding.extra}})


def _comparison_order(finding: Finding) -> tuple[Any, ...]:
    extra = finding.extra
    return (metric_order(str(extra["metric"])), set_order(str(extra["set"])),
            arm_order(str(extra["left_arm"])), arm_order(str(extra["right_arm"])), finding.name)
