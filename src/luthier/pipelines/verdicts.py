"""Verdicts of a comparison: scores and costs of arms in, findings and a recommendation out. Nothing is run or read here.

- Estimand: from 3 training seeds *the method*, trained anew (`statistics.hierarchical`); with fewer *these models*, the mean
  of their seeds question by question (`statistics.paired`).
- Family: all pairs of arms and sets of one metric; a better or worse that does not survive Holm is undecided. What is
  compared with a reference (the untuned base) is a family of its own.
- Power: `visible` is the smallest true difference that a pair shows with probability 0.8, `visible_family` where it has to
  pass Holm's first and strictest step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.core.finding import Finding
from luthier.core.rng import Rng
from luthier.engine import statistics
from luthier.engine.power import smallest_visible
from luthier.pipelines.alike import settle
from luthier.pipelines.grid import Cost, Scores
from luthier.pipelines.steps.compare_arms import holm_family

POWER = 0.8


@dataclass(frozen=True)
class Pair:
    """Two arms on one set by one metric: their values, shape [seeds, questions], on the questions that all of them answered."""

    set: str
    left: str
    right: str
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    clusters: list[str]

    @property
    def method(self) -> bool:
        """Whether there are seeds enough to speak of methods."""
        return len(self.before) >= statistics.FEWEST_SEEDS

    def parts(self) -> list[tuple[NDArray[np.float64], list[str]]]:
        """(differences, clusters): one a seed, or the mean of seeds where these speak of single models."""
        differences = self.after - self.before
        return [(d, self.clusters) for d in (differences if self.method else [differences.mean(axis=0)])]

    def test(self, level: float, seed: int, **options: Any) -> statistics.Comparison:
        """The paired test; options: margin, higher_is_better. Arms that score alike everywhere: see `alike`."""
        parts, largest = self.parts(), np.abs(self.after - self.before).max(axis=0)
        nothing = np.zeros(len(largest))
        if self.method:
            result = statistics.hierarchical(parts, level=level, **options)
        else:
            result = statistics.paired(nothing, parts[0][0], self.clusters, level=level, seed=seed, **options)
        return replace(settle(replace(result, n=len(nothing)), nothing, largest, level), n=result.n)


def verdicts(arms: Mapping[str, Sequence[Scores]], metrics: Mapping[str, bool], *, level: float = 0.95, margin: float = 0.02,
             seed: int = 0, references: Mapping[str, Scores] = {}) -> list[Finding]:
    """A finding for every pair of arms, set and metric, after Holm; then for every reference and arm.

    arms: the scores of each arm, one a training seed. metrics: those that are judged, and whether higher is better.
    """
    found: list[Finding] = []
    sets = list(dict.fromkeys(s for runs in arms.values() for scores in runs for s, _ in scores))
    for metric, higher in metrics.items():
        families = {"arms": [pair(name, metric, one, arms[one], two, arms[two])
                             for name, (one, two) in product(sets, combinations(arms, 2))]}
        for reference, scores in references.items():
            families[f"against {reference}"] = [pair(name, metric, reference, [scores] * len(runs), arm, runs)
                                                for name, (arm, runs) in product(sets, arms.items())]
        for family, members in families.items():
            found += _judged(f"{family} by {metric}", [p for p in members if p], metric, level, seed,
                             margin=margin, higher_is_better=higher)
    return found


def pair(name: str, metric: str, left: str, before: Sequence[Scores], right: str, after: Sequence[Scores]) -> Pair | None:
    """Two arms aligned by question; None where they share none."""
    runs = [s.get((name, metric), {}) for s in (*before, *after)]
    ids = [i for i in runs[0] if all(i in run for run in runs)]
    if not ids:
        return None
    values = np.array([[run[i][1] for i in ids] for run in runs])
    return Pair(name, left, right, values[:len(before)], values[len(before):], [runs[0][i][0] for i in ids])


def _judged(family: str, pairs: Sequence[Pair], metric: str, level: float, seed: int, **options: Any) -> list[Finding]:
    """The findings of one family, after Holm."""
    first = [_finding(p, metric, level, _draw(seed, metric, p.set), family, len(pairs), options) for p in pairs]
    found = []
    for judged, p in zip(holm_family(first, 1 - level), pairs, strict=True):
        if judged.verdict == "undecided" and judged.extra["p"] is not None:
            # What it would take has to be said at the level at which Holm decides.
            strict = p.test(1 - (1 - level) / len(pairs), _draw(seed, metric, p.set), **options)
            needed = strict.needed if strict.verdict == "undecided" else judged.extra["needed"]
            judged = replace(judged, extra={**judged.extra, "needed": needed, "needed_unit": strict.needed_unit})
        found.append(judged)
    return found


def _draw(seed: int, metric: str, name: str) -> int:
    return Rng(seed).within("compare").key("paired", f"{metric}/{name}") % 2**32


def _finding(p: Pair, metric: str, level: float, seed: int, family: str, size: int, options: Mapping[str, Any]) -> Finding:
    result, parts = p.test(level, seed, **options), p.parts()
    interval = None if result.low is None or result.high is None else (float(result.low), float(result.high))
    verdict = "no difference" if result.verdict.startswith("no difference") else result.verdict
    about = f"this method, over {len(p.before)} trainings and clusters" if p.method else "these models, over clusters"
    return Finding(
        f"compare/{metric}/{p.set}/{p.left}|{p.right}", float(p.before.mean()), float(p.after.mean()),
        float(result.difference), verdict, interval=interval, unit=metric, evidence="comparison.json",  # type: ignore[arg-type]
        detail=about, extra={
            "test": result.test, "p": result.p, "clusters": result.clusters, "questions": len(p.clusters),
            "seeds": len(p.before), "needed": result.needed, "needed_unit": result.needed_unit, "left_arm": p.left,
            "right_arm": p.right, "metric": metric, "set": p.set, "margin": options["margin"], "level": level,
            "power": POWER, "visible": smallest_visible(parts, POWER, level),
            "visible_family": smallest_visible(parts, POWER, 1 - (1 - level) / size),
            "estimand": "method" if p.method else "models", "family_name": family, "family": 0, "p_holm": None})


def table(arms: Mapping[str, Sequence[Scores]], metrics: Sequence[str], level: float = 0.95) -> list[dict[str, Any]]:
    """Each arm's mean by set and metric, over seeds and questions, with an interval that describes and decides nothing."""
    rows = []
    for arm, runs in arms.items():
        for name, metric in (key for key in runs[0] if key[1] in metrics):
            # Against nothing: the arm's own values are the differences from 0.
            nothing: Scores = {(name, metric): {i: (c, 0.0) for i, (c, _) in runs[0][name, metric].items()}}
            alone = pair(name, metric, "", [nothing] * len(runs), arm, runs)
            if alone is None:
                continue
            low, high = _described(alone, level)
            rows.append({"arm": arm, "set": name, "metric": metric, "value": float(alone.after.mean()), "low": low,
                         "high": high, "by_seed": [float(v) for v in alone.after.mean(axis=1)],
                         "questions": len(alone.clusters), "clusters": len(set(alone.clusters))})
    return rows


def _described(alone: Pair, level: float) -> tuple[float | None, float | None]:
    """The interval of one arm's mean, within [0, 1] where the values are."""
    if not alone.method:
        found = statistics.mean_interval(alone.parts()[0][0], alone.clusters, level)
        return (None, None) if found is None else found
    whole = statistics.hierarchical(alone.parts(), level=level)
    if whole.low is None or whole.high is None:
        return None, None
    bound = alone.after.min() >= 0 and alone.after.max() <= 1
    return (max(0.0, whole.low), min(1.0, whole.high)) if bound else (whole.low, whole.high)


# --- the recommendation --------------------------------------------------------------------------------------------

def recommend(findings: Sequence[Finding], costs: Mapping[str, Cost], metric: str) -> dict[str, Any]:
    """The cheapest of the arms that no other arm beats on any set, by the first metric, and why, in words.

    Cheapest: fewest trained parameters, then fewest seconds of training.
    """
    pairs = [f for f in findings if f.extra["metric"] == metric and {f.extra["left_arm"], f.extra["right_arm"]} <= set(costs)]
    beaten = {f.extra["left_arm" if f.verdict == "better" else "right_arm"] for f in pairs if f.verdict in ("better", "worse")}
    kept = [arm for arm in costs if arm not in beaten]
    if not kept:
        return {"arm": None, "kept": [], "beaten": sorted(beaten), "words":
                f"No arm is best on every set by {metric}: each is beaten somewhere. Decide by the set nearest to your use."}
    arm = min(kept, key=lambda a: (costs[a].trained_parameters, costs[a].seconds))
    price = f"{arm} ({costs[arm].trained_parameters:,} trained parameters)"
    asked = _asked(pairs)
    if len(kept) == len(costs):
        same = all(f.verdict == "no difference" for f in pairs)
        seen = [f.extra["visible_family"] for f in pairs if f.extra["visible_family"] is not None]
        limit = f"; the smallest difference that would be seen is {max(seen):.2g} {metric}" if seen and not same else ""
        told = f"No difference beyond ±{pairs[0].extra['margin']:g} {metric}" if same else \
            f"No difference in {metric} you can see"
        words = f"{told} with {asked}{limit}. Take the cheapest: {price}."
    elif len(kept) == 1:
        words = f"Take {price}: no arm beats it, and it beats {_listed(sorted(beaten))} in {metric} with {asked}."
        if not all(_beats(arm, other, pairs) for other in beaten):
            words = f"Take {price}: it is the only arm that none beats in {metric} with {asked}."
    else:
        words = (f"{_listed(kept)} are beaten by no arm in {metric} with {asked}; {_listed(sorted(beaten))} "
                 f"{'is' if len(beaten) == 1 else 'are'}. Take the cheapest of them: {price}.")
    return {"arm": arm, "kept": kept, "beaten": sorted(beaten), "words": words + _gained(arm, findings, costs, metric)}


def _beats(arm: str, other: str, pairs: Sequence[Finding]) -> bool:
    return any((f.extra["left_arm"], f.extra["right_arm"], f.verdict) in ((other, arm, "better"), (arm, other, "worse"))
               for f in pairs)


def _gained(arm: str, findings: Sequence[Finding], costs: Mapping[str, Cost], metric: str) -> str:
    """Whether the arm is shown to be better than what was not tuned at all."""
    against = [f for f in findings if f.extra["metric"] == metric and f.extra["right_arm"] == arm
               and f.extra["left_arm"] not in costs]
    if not against or any(f.verdict == "better" for f in against):
        return ""
    return f" It is not shown to beat {_listed(sorted({f.extra['left_arm'] for f in against}))}."


def _asked(pairs: Sequence[Finding]) -> str:
    sizes = dict.fromkeys((f.extra["set"], f.extra["questions"]) for f in pairs)
    seeds = max((f.extra["seeds"] for f in pairs), default=1)
    told = " and ".join(f"{n:,} questions of {name}" for name, n in sizes)
    return f"{told}, {seeds} training{'s' * (seeds > 1)} an arm"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def budgets(costs: Mapping[str, Cost]) -> list[str]:
    """Where the arms' budgets differ, in words; nothing where steps and tokens are equal."""
    told = []
    for name, words in (("steps", "optimizer steps"), ("tokens", "trained tokens")):
        found = {arm: getattr(c, name) for arm, c in costs.items()}
        if len(set(found.values())) > 1:
            told.append(f"{words} differ: " + ", ".join(f"{arm} {n:,}" for arm, n in found.items()))
    return told
