"""reproducing: a study's arms as one grid over the step executor, and its result as a record of the package.

Before the first run everything is stated that the result will be judged by (`stated`): the independent units, the guards,
and the smallest difference that such a trial can see. Afterwards `judging.judge` reads the arms' records.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from luthier.core import index, recorded
from luthier.core.component import build
from luthier.core.errors import UserError, nearest
from luthier.core.identity import digest
from luthier.core.kinds import Study
from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.core.study import SCALES, Claim, Found, Measure, Scale
from luthier.engine.executor import Watcher, execute
from luthier.pipelines.grid import Cell, Cost, Grid, Results, Scores, audits, results
from luthier.pipelines.judging import Outcome, judge, visible, visible_over_trainings


def find(slug_or_id: str) -> Study:
    """The study of a seed of the catalogue, by slug or number.

    Raises:
        UserError: there is none; names the nearest.
    """
    there = {r["name"]: r["seeds"] for r in index.rows() if r["kind"] == "study"}
    wanted = next((n for n, seeds in there.items() if slug_or_id.isdecimal() and int(slug_or_id) in seeds), slug_or_id)
    if wanted not in there:
        raise UserError(f"There is no study '{slug_or_id}'. {nearest(wanted, there)} Studies: {', '.join(there)}.")
    found: Study = build("study", wanted)
    return found


def all_studies() -> list[Study]:
    """Every study, by the number of its seed."""
    rows = sorted((r["seeds"][0], r["name"]) for r in index.rows() if r["kind"] == "study")
    return [build("study", name) for _, name in rows]


def seed_of(study: Study) -> int:
    """The number of the paper in the catalogue."""
    return study.info.seeds[0]


def scale_of(study: Study, name: str) -> Scale:
    """One of a study's scales. Raises UserError for another one."""
    if name not in study.scales:
        legal = ", ".join(s for s in SCALES if s in study.scales)
        raise UserError(f"--scale {name}: {study.info.name} has no such scale. Legal: {legal}.")
    return study.scales[name]


def grid_of(study: Study, scale_name: str) -> Grid:
    """All arms and seeds of a scale. Its edits are made in every recipe, as far as its steps are there."""
    scale = scale_of(study, scale_name)
    base = _scaled(Recipe(study.recipe()), scale)
    wanted = scale.arms or tuple(study.arms())
    arms = {name: _scaled(Recipe(edits), scale) if "steps" in edits else edits
            for name, edits in study.arms().items() if name in wanted}
    return Grid(base, arms, tuple(range(scale.seeds)))


def _scaled(recipe: Recipe, scale: Scale) -> Recipe:
    there = {n.name for n in recipe.nodes}
    edits = {path: value for path, value in scale.edits.items() if path.partition(".")[0] in there}
    return recipe.edit(**edits) if edits else recipe


@dataclass(frozen=True)
class Stated:
    """What is said of a trial before it runs. `visible`: claim -> smallest difference it shows four times in five."""

    study: str
    scale: str
    seeds: int
    arms: tuple[str, ...]
    units: dict[str, int]
    guards: tuple[str, ...]
    visible: dict[str, float]
    smallest: dict[str, float]

    def lines(self) -> Iterator[str]:
        """For reading."""
        units = ", ".join(f"{n} of {on}" for on, n in self.units.items())
        yield f"{self.study}, {self.scale} scale: {len(self.arms)} arms x {self.seeds} seed{'s' * (self.seeds > 1)}; n: {units}"
        yield from (f"  guard: {guard}" for guard in self.guards)
        for name, seen in self.visible.items():
            short = " (too small a trial for what is of interest)" if seen > self.smallest[name] else ""
            yield f"  {name}: of interest from {self.smallest[name]:g}, visible from about {seen:.2g}{short}"


def stated(study: Study, scale_name: str) -> Stated:
    """The independent units, the guards, and the smallest visible difference of each claim that the scale asks."""
    scale, grid = scale_of(study, scale_name), grid_of(study, scale_name)
    chosen = {c.name for c in study.choices() if set(c.among) & set(grid.arms)}
    asked = [c for c in study.claims() if {c.left, c.right} <= set(grid.arms) | chosen]
    trends = [t for t in study.trends() if len(set(grid.arms) & set(t.runs)) > 1]
    over = [c for c in asked if isinstance(c.measure, Found)]
    seen = {c.name: visible_over_trainings(c.seed_spread, scale.seeds) if c in over
            else visible(c.spread, _least(c, scale), c.seed_spread, scale.seeds) for c in asked}
    for trend in trends:
        runs = len({trend.runs[a] for a in grid.arms if a in trend.runs}) * scale.seeds
        seen[trend.name] = visible(trend.spread, runs)
    guards = [*(f"at least {n} units of {on}" for on, n in scale.units.items()),
              *(f"{g.says} ({', '.join(a for a in g.arms if a in grid.arms)})" for g in study.guards()
                if set(g.arms) & set(grid.arms))]
    units = {**scale.units, **({"trainings": scale.seeds} if over else {})}
    return Stated(study.info.name, scale_name, scale.seeds, tuple(grid.arms), units, tuple(guards), seen,
                  {c.name: c.smallest for c in asked} | {t.name: t.smallest for t in trends})


def _least(claim: Claim, scale: Scale) -> int:
    """Units of the smaller side of a claim."""
    measures = [claim.measure, *([claim.left_measure] if claim.left_measure else [])]
    missing = [m.on for m in measures if m.on not in scale.units]
    if missing:
        raise ValueError(f"the scale states no units of '{missing[0]}', which claim '{claim.name}' measures")
    return min(scale.units[m.on] for m in measures)


@dataclass(frozen=True)
class Reproduction:
    """A finished trial: what was found, and what it took."""

    study: Study
    outcome: Outcome
    results: dict[str, Results]
    seconds: float

    def record(self) -> dict[str, Any]:
        """What `--record` keeps: verdicts, means, and each question's score of the measures that claims read."""
        study, outcome = self.study, self.outcome
        main = [asdict(f) for f in outcome.claims]
        return {"study": study.info.name, "seed": seed_of(study), "version": study.info.version,
                "fingerprint": fingerprint(study, outcome.scale), "scale": outcome.scale, "world": study.world,
                "seeds": outcome.seeds, "verdict": outcome.verdict, "why": outcome.why, "seconds": round(self.seconds),
                "stated": _rounded(asdict(stated(study, outcome.scale))), "chosen": outcome.chosen,
                "paper": asdict(study.paper), "guards": [asdict(g) for g in outcome.guards], "claims": _rounded(main),
                "table": _rounded(outcome.table), "scores": self._scores()}

    def _scores(self) -> dict[str, dict[str, list[float]]]:
        """Arm and measure -> question id -> its value under each seed."""
        measures = dict.fromkeys(m for c in self.study.claims() for m in (c.measure, c.left_measure) if m)
        kept: dict[str, dict[str, list[float]]] = {}
        for measure in measures:
            for cell in self.results[measure.step].cells if measure.step in self.results else ():
                for question, (_, value) in cell.scores.get((measure.on, measure.metric), {}).items():
                    kept.setdefault(f"{cell.arm}: {measure}", {}).setdefault(question, []).append(round(value, 4))
        return kept


def fingerprint(study: Study, scale_name: str) -> str:
    """Digest of what is run and of what is claimed, at one scale.

    Recipes enter by their identity: a step that has got a new field, at its default, runs what it ran before.
    """
    grid = grid_of(study, scale_name)
    said: list[Any] = [*study.claims(), *study.trends(), *study.choices(), *study.guards()]
    return digest({"arms": {n: r.identity for n, r in grid.variants.items()}, "seeds": list(grid.seeds),
                   "claims": [asdict(one) for one in said]})


def reproduce(study: Study, scale_name: str, folder: Path, *, watcher: Watcher | None = None, fresh: bool = False,
              exact: bool = False, executor: str = "local") -> Reproduction:
    """Run a study in a run folder, going on where it stopped, and judge it.

    Raises:
        UserError: bad input, before anything expensive.
        GateError: a receipt differs.
    """
    from luthier.engine.workshop import Engine

    grid = grid_of(study, scale_name)
    began = time.monotonic()
    run = execute(grid.recipe(), folder, Engine(exact=exact), watcher, fresh, executor)
    found = read(study, run, grid)
    records = {(cell.arm, cell.seed, step): _read_of(study, grid, step, cell) for step, result in found.items()
               for cell in result.cells}
    took = sum(float(step.get("seconds", 0.0)) for step in run.steps().values())
    return Reproduction(study, judge(study, scale_name, records), found, max(took, time.monotonic() - began))


def read(study: Study, run: Run, grid: Grid) -> dict[str, Results]:
    """The results of each evaluation or audit that a measure names, where the scale has an arm with it."""
    there = {node.name for variant in grid.variants.values() for node in variant.nodes}
    return {step: results(run, grid, step) for step in dict.fromkeys(m.step for m in measures_of(study)) if step in there}


def _read_of(study: Study, grid: Grid, step: str, cell: Cell) -> Scores:
    """The scores that are judged and shown: of an audit's many numbers only those that a measure reads."""
    if step not in audits(grid.variants[cell.arm]):
        return cell.scores
    wanted = {(m.on, m.metric) for m in measures_of(study) if m.step == step}
    return {key: values for key, values in cell.scores.items() if key in wanted}


def measures_of(study: Study) -> Sequence[Measure]:
    """Every measure that a guard, choice, claim or trend reads."""
    claims = [m for c in study.claims() for m in (c.measure, c.left_measure) if m]
    trends = [m for t in study.trends() for m in (t.response, *t.terms.values())]
    return [*claims, *trends, *(g.measure for g in study.guards()), *(c.by for c in study.choices())]


def pending(studies: Sequence[Study]) -> list[Study]:
    """Those without a record of their current version at the default scale: where `--all --record` goes on."""
    return [s for s in studies if not is_current(s)]


def is_current(study: Study) -> bool:
    """Whether a study's record is of its current version, at the default scale."""
    record = recorded.records().get(seed_of(study))
    return record is not None and record["version"] == study.info.version and record["scale"] == "default"


def mean_cost(reproduction: Reproduction) -> dict[str, dict[str, float]]:
    """Arm -> seconds of training, trained tokens and weights, means over seeds."""
    costs: dict[str, dict[int, Cost]] = {}
    for result in reproduction.results.values():
        for cell in result.cells:
            costs.setdefault(cell.arm, {}).setdefault(cell.seed, cell.cost)
    return {arm: {"seconds": fmean(c.seconds for c in own.values()), "tokens": fmean(c.tokens for c in own.values()),
                  "weights": fmean(c.trained_parameters for c in own.values())} for arm, own in costs.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return value
