"""compare: several ways to tune, on the same rows, with the same budget, judged by what the data can show.

One kind of part varies, each value an arm (`--method lora --method bitfit`); everything else is equal. The learning rate is
chosen for each arm on dev, by equally many trials, before the test is opened. Arms x seeds are one `Grid`; this file turns
its scores into verdicts, costs and a recommendation (`pipelines.verdicts`), and all of it into files: `comparison.json` holds
what the report is drawn from.

Equal budget is optimizer steps x trained tokens: arms share rows and length, and where the amounts differ all the same, that
is said. What a search took is charged, and shown apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from luthier.core.errors import UserError, nearest
from luthier.core.files import Journal, read_lines, write_atomic, write_json, write_lines
from luthier.core.finding import Finding
from luthier.core.recipe import Recipe, load_recipe
from luthier.core.rng import Rng
from luthier.core.run import Run
from luthier.core.step import FitCtx
from luthier.engine import statistics
from luthier.engine.executor import check_executor
from luthier.engine.steps.base import Base
from luthier.engine.steps.fit import Fit
from luthier.pipelines import jobs, verdicts
from luthier.pipelines.grid import Cell, Cost, Grid, Results, evaluations, results, slug
from luthier.pipelines.overrides import override
from luthier.pipelines.report.plots import thinned
from luthier.pipelines.steps.compare_arms import CompareArms
from luthier.pipelines.steps.sweep import FEWEST
from luthier.pipelines.steps.tasks import Tasks

# What may vary: each value of one of these is an arm.
VARIES = ("method", "objective", "regularizer", "optimizer", "decoder", "recipe")
NONE = "none"
TRIALS = 5
CURVE_POINTS = 120


@dataclass(frozen=True)
class Comparison:
    """What is to be compared: the grid, what was written for each arm, and by what it is judged."""

    grid: Grid
    labels: dict[str, str]
    kind: str
    metrics: dict[str, bool]
    level: float = 0.95
    margin: float = 0.02
    asked: dict[str, Any] = field(default_factory=dict)


# --- what is compared ----------------------------------------------------------------------------------------------

def plan(data: str | Sequence[str], *, parts: Mapping[str, Sequence[str]], base: str | None = None, seed: int | None = None,
         seeds: int = 1, sets: Sequence[str] = (), learning_rate: str = "sweep") -> Comparison:
    """The comparison that a command line asks for; nothing has run yet.

    parts: values by kind (`VARIES`, and `metric` for all arms); the kind with several of them is what varies.
    learning_rate: `sweep` or `sweep:TRIALS`, `default`, or a number.

    Raises:
        UserError: a manifest of tasks, fewer than two arms, two kinds that vary, arms that are the same, or whatever `tune`
            refuses.
    """
    _refuse_manifests([data] if isinstance(data, str) else data, parts.get("recipe", ()))
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: at least 1 is needed; from {statistics.FEWEST_SEEDS} on the verdicts are about "
                        "methods, not about single models.")
    kind = _varying(parts)
    values = list(parts[kind])
    arms: dict[str, Recipe] = {}
    labels: dict[str, str] = {}
    for value in values:
        name = slug(value if kind != "recipe" else Path(value).stem)
        if name in arms:
            raise UserError(f"--{kind} {value} is given twice (arm '{name}'). Give each arm something of its own.")
        arms[name] = _with_rate(_tuned(data, {**parts, kind: [value]}, base, seed, sets), learning_rate)
        labels[name] = value
    first = next(iter(arms.values()))
    grid = Grid(first, arms, [first.seed + i for i in range(seeds)])
    judge = next((n.step for n in first.nodes if isinstance(n.step, CompareArms)), CompareArms())
    asked = {"data": [data] if isinstance(data, str) else list(data), "learning_rate": learning_rate}
    return Comparison(grid, labels, kind, _metrics(grid, judge.metrics), judge.level, judge.margin, asked)


def _refuse_manifests(paths: Sequence[str], recipes: Sequence[str]) -> None:
    """A manifest of tasks leaves a body, whose worth only another tuning tells; a recipe may have that, too."""
    made = {name: load_recipe(name) for name in recipes}
    tasks = [name for name, recipe in made.items() if any(isinstance(n.step, Tasks) for n in recipe.nodes)]
    manifest = next((p for p in paths if Path(p).suffix in (".yaml", ".yml")), None)
    if not (manifest or tasks) or any(evaluations(made[name]) for name in tasks):
        return
    what = f"{manifest} is a manifest of tasks" if manifest else f"--recipe {tasks[0]} reads a manifest of tasks"
    raise UserError(f"{what}: what is trained on it is a body, which answers nothing that could be compared. A curve over "
                    "numbers of tasks is a body for each, tuned on your target: luthier tune tasks.yaml --recipe muppet --set "
                    "tuned.n_tasks=8 --out body8, then luthier tune target.jsonl --base body8/steps/body/weights. luthier "
                    "reproduce muppet draws it on tasks of its own.")


def _varying(parts: Mapping[str, Sequence[str]]) -> str:
    several = [kind for kind in VARIES if len(parts.get(kind, ())) > 1]
    if len(several) > 1:
        raise UserError(f"{' and '.join(f'--{k}' for k in several)} are both repeated: one kind varies at a time, so that a "
                        "difference has one cause. Give the others once.")
    if not several:
        given = next((f"--{k} {parts[k][0]}" for k in VARIES if parts.get(k)), "")
        alone = f"{given} alone has nothing to be compared with. " if given else ""
        raise UserError(f"{alone}Repeat one of {', '.join(f'--{k}' for k in VARIES)}, one arm each, such as "
                        "--method lora --method bitfit.")
    return several[0]


def _tuned(data: str | Sequence[str], parts: Mapping[str, Sequence[str]], base: str | None, seed: int | None,
           sets: Sequence[str]) -> Recipe:
    """The recipe of one arm, as `tune` makes it."""
    recipe, objective = (next(iter(parts.get(kind) or ()), None) for kind in ("recipe", "objective"))
    made = jobs.tune(data, recipe=recipe or "tune", objective=objective, sets=sets)
    given = {kind: [s for s in specs if s != NONE] for kind, specs in parts.items() if kind not in ("recipe", "objective")}
    for kind, specs in parts.items():
        if NONE in specs and kind != "regularizer":
            raise UserError(f"--{kind} none: a training needs one. Only --regularizer can be none.")
    return override(made, base=base, seed=seed, parts=given, sets=sets)


def _with_rate(recipe: Recipe, rate: str) -> Recipe:
    """The recipe with its trainings' learning rates set, left, or searched on dev."""
    word, _, rest = rate.partition(":")
    if rate == "default":
        return recipe
    fits = [n for n in recipe.nodes if isinstance(n.step, Fit)]
    if word != "sweep":
        try:
            number = float(rate)
        except ValueError:
            raise UserError(f"--learning-rate {rate}: write sweep, sweep:TRIALS, default, or a number. "
                            f"{nearest(word, ('sweep', 'default'))}") from None
        if not 0 < number < float("inf"):
            raise UserError(f"--learning-rate {rate}: a rate is greater than 0.")
        return recipe.edit(**{f"{n.name}.learning_rate": number for n in fits}) if fits else recipe
    if (":" in rate and not rest.isdigit()) or (rest and int(rest) < FEWEST):
        raise UserError(f"--learning-rate {rate}: a sweep takes at least {FEWEST} trials, such as sweep:{TRIALS}.")
    steps = dict(recipe.text["steps"])
    for node in fits:
        text = dict(steps[node.name])
        inputs = dict(text.pop("inputs"))
        text.pop("seed", None)
        search = f"{node.name}@rate"
        steps[search] = {"use": "sweep", "trials": int(rest or TRIALS), "fit": text, "inputs": inputs}
        steps[node.name] = {**steps[node.name], "inputs": {**inputs, "rate": search}}
    made = Recipe({**recipe.text, "steps": steps})
    for node in made.nodes:
        if node.step.info.name == "sweep":
            node.step.check()
    return made


def _metrics(grid: Grid, wanted: Sequence[str]) -> dict[str, bool]:
    """The metrics that are compared, with their direction: those that every arm measures, in the order of the recipe."""
    found: list[dict[str, bool]] = []
    for arm, variant in grid.variants.items():
        step = next(n.step for n in variant.nodes if n.name == grid.evaluation(arm))
        found.append({m.info.name: m.higher_is_better for m in step.metrics})  # type: ignore[attr-defined]
    shared = {m: up for m, up in found[0].items() if all(m in others for others in found)}
    chosen = {m: shared[m] for m in wanted if m in shared} or shared
    if not chosen:
        told = "; ".join(f"{arm}: {', '.join(m)}" for arm, m in zip(grid.arms, found, strict=True))
        raise UserError(f"The arms have no metric in common ({told}): nothing could be compared. Name one for all: --metric.")
    return chosen


# --- running it ----------------------------------------------------------------------------------------------------

def compare(comparison: Comparison, folder: Path, **options: Any) -> dict[str, Any]:
    """Run the grid (what is finished is not run again), judge it, write the files; returns what `comparison.json` holds.

    options: those of `jobs.run` (fresh, exact, watcher, executor).
    """
    from luthier.pipelines.report import compare as report

    told: dict[str, Any] = {}

    def write(run: Run) -> Path:
        told.update(facts(comparison, run))
        write_json(folder / "comparison.json", told)
        write_json(folder / "families.json", told["families"])
        write_lines(folder / "findings.jsonl", told["findings"])
        write_atomic(folder / "comparison.md", report.markdown(told))
        path = folder / "report.html"
        write_atomic(path, report.page(told))
        return path

    check_executor(options.get("executor", "local"))
    if not (folder / "comparison.json").exists():
        refuse_untrainable(comparison.grid)
    jobs.run(comparison.grid.recipe(), folder, report=write, with_card=False, **options)
    return told


def refuse_untrainable(grid: Grid) -> None:
    """Put every arm's method on its base without weights: what can't be trained is refused before another arm is trained.

    Raises:
        UserError: the method finds nothing to train, or the objective is for another architecture.
    """
    import torch

    from luthier.engine.metering import meta_model
    from luthier.engine.models import folder_of
    from luthier.engine.workshop import Engine

    engine = Engine(exact=True)
    with TemporaryDirectory() as place:
        for number, (arm, recipe) in enumerate(grid.variants.items()):
            bases = {n.name: n.step for n in recipe.nodes if isinstance(n.step, Base)}
            for node in recipe.nodes:
                if not isinstance(node.step, Fit) or node.inputs["base"] not in bases:
                    continue
                folder = Path(place) / f"{number}-{node.name}"
                folder.mkdir()
                ctx = FitCtx(Rng(recipe.seed), folder, Journal(folder / "journal.jsonl"), engine)
                bases[node.inputs["base"]].check()
                base = bases[node.inputs["base"]].run({}, ctx)
                model = meta_model(folder_of(base), base, torch.float32)
                model.name = str(base.meta["name"])
                try:
                    node.step._check_architecture(model)
                    node.step.method.prepare(model, ctx)
                except UserError as error:
                    raise UserError(f"Arm '{arm}': {error}") from None
                except Exception as error:  # a method that needs the weights themselves says so when it trains
                    ctx.log(f"{arm}: not tried without weights ({error})")


def facts(comparison: Comparison, run: Run) -> dict[str, Any]:
    """Everything there is to say about a finished comparison, as JSON values."""
    grid = comparison.grid
    found = results(run, grid)
    metrics = {m: found.higher_is_better[m] for m in comparison.metrics}
    arms = {arm: found.scores(arm) for arm in grid.arms}
    references = {name: s for name, s in found.references.items() if name not in arms}
    findings = verdicts.verdicts(arms, metrics, level=comparison.level, margin=comparison.margin, seed=grid.base.seed,
                                 references=references)
    cells = {arm: [c for c in found.cells if c.arm == arm] for arm in grid.arms}
    costs = {arm: mean_cost([c.cost for c in of]) for arm, of in cells.items()}
    first = next(iter(metrics))
    rows = verdicts.table({**{n: [s] for n, s in references.items()}, **arms}, list(metrics), comparison.level)
    return {
        "format": 1, "run": str(run.folder), "base": _base(run), "asked": comparison.asked, "varies": comparison.kind,
        "seeds": list(grid.seeds), "seed": grid.base.seed, "level": comparison.level, "margin": comparison.margin,
        "power": verdicts.POWER, "metrics": metrics, "executor": run.record.get("executor", {}).get("name"),
        "references": list(references), "rows": _rows(found),
        "arms": [{"arm": arm, "written": comparison.labels[arm], "cost": costs[arm].to_dict(),
                  "search": cells[arm][0].search.to_dict(), "learning_rate": _rates(run, grid, arm, cells[arm]),
                  "by_seed": [{"seed": c.seed, **c.cost.to_dict()} for c in cells[arm]],
                  "curves": [{"seed": c.seed, **_curve(c)} for c in cells[arm]]} for arm in grid.arms],
        "budgets": verdicts.budgets(costs), "table": rows, "findings": [f.to_dict() for f in findings],
        "families": _families(findings), "recommendation": verdicts.recommend(findings, costs, first)}


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """The cost of one training of an arm: the mean over its seeds, of memory the highest."""
    def mean(name: str) -> float:
        return sum(getattr(c, name) for c in costs) / len(costs)

    return Cost(round(mean("steps")), round(mean("tokens")), mean("seconds"), mean("step_seconds"),
                round(mean("trained_parameters")), round(mean("artifact_bytes")), max(c.peak_mb for c in costs),
                round(mean("trainings")))


def _base(run: Run) -> dict[str, Any]:
    artifact = next((run.step(n) for n, s in run.steps().items() if s["use"] == "base"), None)
    return {k: artifact.meta.get(k) for k in ("name", "note", "architecture")} if artifact else {}


def _rows(found: Results) -> dict[str, Any]:
    """Rows trained on and left out, by what the trainings say."""
    trainings = [a for c in found.cells for a in c.trainings]
    return {"trained": dict(trainings[0].meta["rows"]), "left_out": trainings[0].meta["dropped"]} if trainings else {}


def _rates(run: Run, grid: Grid, arm: str, cells: Sequence[Cell]) -> dict[str, Any]:
    """The learning rate that an arm was trained with, where it comes from, and what was tried."""
    if not cells[0].trainings:
        return {}
    told = dict(cells[0].trainings[-1].meta["fit"]["learning_rate"])
    names = grid.names(arm, grid.seeds[0])
    sweeps = [run.step(names[n.name]) for n in grid.variants[arm].nodes if n.step.info.name == "sweep"]
    for sweep in sweeps[-1:]:
        told.update(default=sweep.meta["default"], at_end=sweep.meta["at_end"],
                    trials=[{k: t[k] for k in ("learning_rate", "loss")} for t in sweep.meta["trials"]])
    return told


def _curve(cell: Cell) -> dict[str, Any]:
    """Training and dev losses of a cell's last training, thinned."""
    if not cell.trainings:
        return {}
    rows = read_lines(cell.trainings[-1].folder / "curve.jsonl")
    line, width = thinned([(r["step"], r["loss"]) for r in rows if "loss" in r], CURVE_POINTS)
    return {"loss": line, "mean_of": width, "dev": [(r["step"], r["dev_loss"]) for r in rows if "dev_loss" in r]}


def _families(findings: Sequence[Finding]) -> dict[str, Any]:
    """The families that Holm was applied to: every member with its p value, as found and adjusted."""
    found: dict[str, Any] = {}
    for f in findings:
        found.setdefault(f.extra["family_name"], []).append(
            {"name": f.name, "p": f.extra["p"], "p_holm": f.extra["p_holm"]})
    return found
