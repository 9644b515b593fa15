"""judging: what the records of a study's arms say of its claims, by one rule for all studies.

A claim's difference is oriented so that the paper's direction is positive. With the interval [low, high] of it, the
smallest difference of interest s > 0 and the smallest v that these records show four times in five,

    low > 0 and high >= s      shown
    high < 0 and low <= -s     reversed
    high < s otherwise         not shown at this scale: it is smaller than what is of interest
    else                       underpowered where v > s, undecided where a difference of s should have been seen

From three seeds the interval speaks of the method (`statistics.hierarchical`), below of these models (each question's mean
over the seeds, `statistics.paired`). What an audit found is one number a training: paired by seed, with Student's t and as
many units as trainings, at least three. Main claims must all hold, which needs no correction; the others are a family that
Holm corrects. A broken guard leaves no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist, fmean
from typing import Any

import numpy as np

from luthier.core.errors import UserError, nearest
from luthier.core.finding import Finding, Verdict
from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Found, Measure, Scale, Trend, measure_of
from luthier.engine import regression, statistics
from luthier.pipelines.findings import WHOLE
from luthier.pipelines.grid import Scores, Values

LEVEL, POWER = 0.95, 0.8
NO_VERDICT: Verdict = "not applicable"
Records = Mapping[tuple[str, int, str], Scores]  # (arm, seed, step) -> (set, metric) -> question -> (cluster, value)
Interval = tuple[float, float]


@dataclass(frozen=True)
class Outcome:
    """What a study found. `verdict` is that of its main claims together; `table` has a row for each arm and measure."""

    study: str
    scale: str
    seeds: int
    verdict: Verdict
    why: str
    guards: list[Finding]
    claims: list[Finding]
    chosen: dict[str, str]
    table: list[dict[str, Any]] = field(default_factory=list)

    @property
    def guarded(self) -> bool:
        """Whether all guards hold."""
        return all(g.verdict == "agrees" for g in self.guards)


def visible(spread: float, units: int, seed_spread: float = 0.0, seeds: int = 1) -> float:
    """Smallest true difference that is shown with probability 0.8: (z_level + z_power) · standard error."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2) + NormalDist().inv_cdf(POWER)
    return z * math.sqrt(spread**2 / units + seed_spread**2 / seeds)


def visible_over_trainings(seed_spread: float, seeds: int) -> float:
    """The same for one number a training: of few trainings the spread is not known, so t stands for z."""
    from scipy.stats import t as student

    if seeds < statistics.FEWEST_SEEDS:
        return math.inf
    return float(student.ppf((1 + LEVEL) / 2, seeds - 1) + student.ppf(POWER, seeds - 1)) * seed_spread / math.sqrt(seeds)


def weigh(direction: str, interval: Interval | None, smallest: float, seen: float) -> Verdict:
    """The verdict on one claim; `seen` is the smallest difference that the records show with probability 0.8."""
    if interval is None:
        return "underpowered"
    low, high = interval if direction == "higher" else (-interval[1], -interval[0])
    if low > 0 and high >= smallest:
        return "shown"
    if high < 0 and low <= -smallest:
        return "reversed"
    if high < smallest:
        return "not shown at this scale"
    return "underpowered" if seen > smallest else "undecided"


def judge(study: Study, scale_name: str, records: Records) -> Outcome:
    """Guards, choices, claims and trends over the records of every arm, seed and step.

    Raises:
        UserError: a claim names an arm or a measure that no record holds.
    """
    scale = study.scales[scale_name]
    read = _Read(records)
    guards = [*_units(study, scale, read), *_guards(study, scale, read)]
    chosen = _chosen(study.choices(), read)
    read = replace(read, chosen=chosen)
    claims = [_claim(study, c, read) for c in study.claims() if _there(read, c.left, c.right)]
    claims += [_trend(study, t, read) for t in study.trends() if len(set(read.arms) & set(t.runs)) > 1]
    claims = _corrected(claims)
    verdict, why = _together(guards, claims)
    return Outcome(study.info.name, scale_name, len(read.seeds), verdict, why, guards, claims, chosen, _table(read))


@dataclass(frozen=True)
class _Read:
    """The records, and the arms that choices stand for."""

    records: Records
    chosen: Mapping[str, str] = field(default_factory=dict)

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(arm for arm, _, _ in self.records))

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, seed, _ in self.records})

    def values(self, arm: str, measure: Measure) -> list[Values]:
        """The values by seed, in the order of the seeds."""
        arm = self.chosen.get(arm, arm)
        if arm not in self.arms:
            raise UserError(f"There is no arm '{arm}'. {nearest(arm, self.arms)}")
        found = [self.records.get((arm, seed, measure.step), {}).get((measure.on, measure.metric)) for seed in self.seeds]
        missing = [seed for seed, values in zip(self.seeds, found, strict=True) if not values]
        if missing:
            raise UserError(f"Arm '{arm}', seed {missing[0]}: step '{measure.step}' left no {measure}.")
        return [v for v in found if v]

    def mean(self, arm: str, measure: Measure) -> float:
        """Mean over questions, then over seeds."""
        return fmean(fmean(v for _, v in values.values()) for values in self.values(arm, measure))

    def averaged(self, arm: str, measure: Measure) -> Values:
        """Each question's mean over the seeds."""
        by_seed = self.values(arm, measure)
        shared = [q for q in by_seed[0] if all(q in values for values in by_seed)]
        return {q: (by_seed[0][q][0], fmean(values[q][1] for values in by_seed)) for q in shared}


def _there(read: _Read, *arms: str) -> bool:
    """Whether a scale runs the arms; smoke leaves some out."""
    return all(arm in read.arms or arm in read.chosen for arm in arms)


# ---------------------------------------------------------------- guards and choices

def _units(study: Study, scale: Scale, read: _Read) -> list[Finding]:
    """As many independent units as were stated before the first run."""
    found = []
    for on, stated in scale.units.items():
        sizes = [len({cluster for cluster, _ in values.values()}) for scores in read.records.values()
                 for (name, _), values in scores.items() if name == on]
        size = min(sizes, default=0)
        found.append(Finding(f"study/{study.info.name}/units of {on}", stated, size, float(size - stated),
                             "agrees" if size >= stated else "differs", unit="units",
                             detail=f"at least {stated} independent units of {on}"))
    return found


def _guards(study: Study, scale: Scale, read: _Read) -> list[Finding]:
    found = []
    for guard in study.guards():
        for arm in guard.arms:
            if not _there(read, arm):
                continue
            value = read.mean(arm, guard.measure)
            holds = (guard.least is None or value >= guard.least) and (guard.most is None or value <= guard.most)
            bound = guard.least if guard.least is not None else guard.most
            found.append(Finding(f"study/{study.info.name}/{arm}: {guard.says}", bound, value, value - (bound or 0.0),
                                 "agrees" if holds else "differs", unit=guard.measure.metric, detail=guard.says))
    return found


def _chosen(choices: Sequence[Choice], read: _Read) -> dict[str, str]:
    """The arm that each choice stands for, of those that were run; among equals the first."""
    chosen: dict[str, str] = {}
    for choice in choices:
        among = [arm for arm in choice.among if arm in read.arms]
        if not among or (choice.near and not (choice.near in chosen or choice.near in read.arms)):
            continue
        means = {arm: read.mean(arm, choice.by) for arm in among}
        if choice.near:
            goal = read.mean(chosen.get(choice.near, choice.near), choice.by)
            lacks = {arm: abs(mean - goal) for arm, mean in means.items()}
        else:
            lacks = {arm: -mean if choice.best == "highest" else mean for arm, mean in means.items()}
        chosen[choice.name] = min(lacks, key=lacks.__getitem__)
    return chosen


# ---------------------------------------------------------------- claims

def _claim(study: Study, claim: Claim, read: _Read) -> Finding:
    same = claim.left_measure is None
    over = isinstance(claim.measure, Found)
    left_measure = claim.left_measure or claim.measure
    left, right = read.mean(claim.left, left_measure), read.mean(claim.right, claim.measure)
    interval, p, units, test = _over_trainings(claim, left_measure, read) if over else \
        _paired(claim, read) if same else _apart(claim, left_measure, read)
    seen = _seen(interval)
    return Finding(
        f"study/{study.info.name}/{claim.name}", left, right, right - left,
        weigh(claim.direction, interval, claim.smallest, seen), interval=interval, unit=claim.measure.metric,
        detail=claim.says, extra={
            "left_arm": _named(read, claim.left, left_measure, same, over),
            "right_arm": _named(read, claim.right, claim.measure, same, over),
            "measure": str(claim.measure), "direction": claim.direction, "smallest": claim.smallest, "visible": seen, "p": p,
            "test": test, "units": units, "seeds": len(read.seeds), "main": claim.main, "paper": claim.paper})


def _named(read: _Read, arm: str, measure: Measure, same: bool, over: bool) -> str:
    stands = f"{arm} ({read.chosen[arm]})" if arm in read.chosen else arm
    return stands if same else f"{stands}, {measure if over else measure.on}"


def _paired(claim: Claim, read: _Read) -> tuple[Interval | None, float | None, int, str]:
    """The same questions on both sides."""
    if len(read.seeds) >= statistics.FEWEST_SEEDS:
        parts: list[tuple[list[float], list[str]]] = []
        for one, two in zip(read.values(claim.left, claim.measure), read.values(claim.right, claim.measure), strict=True):
            shared = [q for q in one if q in two]
            parts.append(([two[q][1] - one[q][1] for q in shared], [one[q][0] for q in shared]))
        result = statistics.hierarchical(parts)
    else:
        one, two = read.averaged(claim.left, claim.measure), read.averaged(claim.right, claim.measure)
        shared = [q for q in one if q in two]
        result = statistics.paired([one[q][1] for q in shared], [two[q][1] for q in shared], [one[q][0] for q in shared])
    interval = None if result.low is None or result.high is None else (float(result.low), float(result.high))
    return interval, result.p, result.clusters, result.test


def _over_trainings(claim: Claim, left_measure: Measure, read: _Read) -> tuple[Interval | None, float | None, int, str]:
    """One number a training on both sides: the mean difference over trainings, by Student's t.

    Seeds that share both sides count once: nothing was trained anew.
    """
    differences: dict[str, float] = {}
    for one, two in zip(read.values(claim.left, left_measure), read.values(claim.right, claim.measure), strict=True):
        (made, left), (also, right) = one[WHOLE], two[WHOLE]
        differences[f"{made}/{also}"] = right - left
    units = len(differences)
    if units < statistics.FEWEST_SEEDS:
        return None, None, units, "none"
    fit = regression.least_squares(list(differences.values()), [[1.0]] * units, list(differences))
    return fit.interval(0, LEVEL), fit.p(0), units, "paired t over trainings"


def _apart(claim: Claim, left_measure: Measure, read: _Read) -> tuple[Interval | None, float | None, int, str]:
    """Different questions on the two sides: the coefficient of the side, errors clustered by question."""
    sides = (read.averaged(claim.left, left_measure), read.averaged(claim.right, claim.measure))
    y = [value for side in sides for _, value in side.values()]
    x = [[1.0, float(n)] for n, side in enumerate(sides) for _ in side]
    clusters = [f"{n}/{cluster}" for n, side in enumerate(sides) for cluster, _ in side.values()]
    units = min(len({c for c, _ in side.values()}) for side in sides)
    if units < statistics.FEWEST_CLUSTERS:
        return None, None, units, "none"
    fit = regression.least_squares(y, x, clusters)
    return fit.interval(1, LEVEL), fit.p(1), units, "regression on the side, clustered"


def _trend(study: Study, trend: Trend, read: _Read) -> Finding:
    names = list(trend.terms)
    y: list[float] = []
    x: list[list[float]] = []
    runs: list[str] = []
    for arm in (a for a in read.arms if a in trend.runs):
        responses = read.values(arm, trend.response)
        for place, seed in enumerate(read.seeds):
            sums = {n: [v for _, v in read.records[arm, seed, m.step].get((m.on, m.metric), {}).values()]
                    for n, m in trend.terms.items()}
            total = sum(map(len, sums.values()))
            y.append(fmean(v for _, v in responses[place].values()))
            x.append([1.0, *(sum(sums[n]) / total for n in names)])
            runs.append(f"{trend.runs[arm]}/{seed}")
    interval: Interval | None = None
    p: float | None = None
    coefficient: float | None = None
    explained: float | None = None
    at = 1 + names.index(trend.term)
    if len(set(runs)) >= statistics.FEWEST_SEEDS and len(y) > len(names) + 1 and \
            np.linalg.matrix_rank(np.array(x)) == len(names) + 1:
        fit = regression.least_squares(y, x, runs)
        interval, p, explained = fit.interval(at, LEVEL), fit.p(at), fit.fit
        coefficient = float(fit.coefficients[at])
    seen = _seen(interval)
    return Finding(
        f"study/{study.info.name}/{trend.name}", 0.0, coefficient, coefficient,
        weigh(trend.direction, interval, trend.smallest, seen), interval=interval, unit=f"{trend.response.metric} per unit",
        detail=trend.says, extra={
            "left_arm": "no effect", "right_arm": f"coefficient of {trend.term}", "measure": str(trend.response),
            "direction": trend.direction, "smallest": trend.smallest, "visible": seen, "p": p, "explained": explained,
            "test": "least squares, clustered by run", "units": len(set(runs)), "seeds": len(read.seeds), "main": trend.main,
            "paper": trend.paper})


def _seen(interval: Interval | None) -> float:
    """The smallest difference that records with this interval show with probability 0.8."""
    if interval is None:
        return math.inf
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    return (interval[1] - interval[0]) / 2 * (1 + NormalDist().inv_cdf(POWER) / z)


def _corrected(claims: list[Finding]) -> list[Finding]:
    """The claims that are not main, corrected by Holm: what does not survive is undecided."""
    family = [f for f in claims if not f.extra["main"] and f.extra["p"] is not None]
    if not family:
        return claims
    adjusted = dict(zip((f.name for f in family), statistics.holm([f.extra["p"] for f in family]), strict=True))
    out = []
    for finding in claims:
        p = adjusted.get(finding.name)
        if p is not None:
            lost = finding.verdict in ("shown", "reversed") and p > 1 - LEVEL
            finding = replace(finding, verdict="undecided" if lost else finding.verdict,
                              extra={**finding.extra, "p_holm": float(p), "family": len(family)})
        out.append(finding)
    return out


def _together(guards: Sequence[Finding], claims: Sequence[Finding]) -> tuple[Verdict, str]:
    """One verdict of all main claims, and what decided."""
    broken = [g for g in guards if g.verdict != "agrees"]
    if broken:
        return NO_VERDICT, f"guard broken: {broken[0].detail} ({broken[0].right:.3g})"
    main = [f for f in claims if f.extra["main"]]
    if not main:
        return NO_VERDICT, "no main claim is asked at this scale"
    said = {f.verdict for f in main}
    if len(said) == 1:
        return main[0].verdict, f"all {len(main)} main claims" if len(main) > 1 else main[0].detail
    order: tuple[Verdict, ...] = ("not shown at this scale", "reversed", "underpowered", "undecided")
    # Claims that go both ways are not the paper's; which of them does stands in the table.
    verdict = "not shown at this scale" if {"shown", "reversed"} <= said else next(v for v in order if v in said)
    return verdict, "; ".join(f"{f.name.rpartition('/')[2]}: {f.verdict}" for f in main)


def _table(read: _Read) -> list[dict[str, Any]]:
    """Every arm's mean of every measure over questions and seeds, with the interval over clusters of the mean over seeds."""
    rows = []
    for arm in read.arms:
        steps = {step for a, _, step in read.records if a == arm}
        for step in sorted(steps):
            for on, metric in read.records[arm, read.seeds[0], step]:
                measure = measure_of(metric, on, step)
                whole = [v[WHOLE] for v in read.values(arm, measure) if set(v) == {WHOLE}]
                values = {made: (made, value) for made, value in whole} if whole else read.averaged(arm, measure)
                clusters = [c for c, _ in values.values()]
                span = statistics.mean_interval([v for _, v in values.values()], clusters, LEVEL)
                rows.append({"arm": arm, "step": step, "on": on, "metric": metric,
                             "value": fmean(v for _, v in values.values()), "low": span[0] if span else None,
                             "high": span[1] if span else None, "questions": len(values), "units": len(set(clusters))})
    return rows
