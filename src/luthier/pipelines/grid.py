"""Grid: one recipe, several arms, several training seeds, as one recipe in which nothing is done twice.

An arm is a mapping of edits by path (`{"tuned.method": "lora:rank=4"}`), or a whole recipe. A step stands once for all
arms and seeds that agree in its settings and in all that it reads, so base, rows and split are shared; a step that an
edit reaches stands once an arm (`split@ARM`), one that trains or reads what was trained once a seed, too
(`tuned@ARM@s1`). The training seed is the `seed` of those steps alone: data and split are those of the recipe's seed.
Variants draw under one name, so a cell of the grid gives the numbers that its recipe gives by itself.

The merged recipe is run by the ordinary executor; `results` reads what came of it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from luthier.core.artifact import MODEL_KINDS, Artifact
from luthier.core.errors import UserError, nearest
from luthier.core.files import read_json, read_lines
from luthier.core.identity import digest
from luthier.core.recipe import Node, Recipe
from luthier.core.run import Run
from luthier.pipelines import findings

Edits = Mapping[str, Any]
# question id -> (cluster, value)
Values = dict[str, tuple[str, float]]
Scores = dict[tuple[str, str], Values]  # (set, metric) -> values
_LEGAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
COMPARES = "compare-arms"


def slug(text: str) -> str:
    """A text as the name of an arm: `lora:rank=4` is lora-rank-4."""
    return re.sub(r"[^A-Za-z0-9._+]+", "-", text).strip("-._+") or "arm"


@dataclass(frozen=True)
class Grid:
    """Arms x seeds of one base recipe. A step `compare-arms` is left out: a grid is compared from its results.

    Raises:
        UserError: no arm, no seed, one twice, a name that is none, or a training with a seed of its own.
    """

    base: Recipe
    arms: Mapping[str, Edits | Recipe]
    seeds: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        if not self.arms or not self.seeds:
            raise UserError("A grid needs at least one arm and one seed.")
        for name in self.arms:
            if not _LEGAL.fullmatch(name):
                raise UserError(f"'{name}' can't name an arm: letters, digits and . _ + - only, such as {slug(name)}.")
        twice = [s for s in self.seeds if list(self.seeds).count(s) > 1]
        if twice:
            raise UserError(f"Seed {twice[0]} is given twice. Name each seed once.")
        said: dict[str, str] = {}
        for name, variant in self.variants.items():
            own = next((n for n in variant.nodes if n.seed is not None and n.name in self.trained(name)), None)
            if own is not None:
                raise UserError(f"{own.name}.seed = {own.seed} (arm '{name}'): a grid gives each training, and what reads "
                                f"it, its seeds ({', '.join(map(str, self.seeds))} here), and under one seed steps of other "
                                f"names draw by themselves. Leave {own.name}.seed out.")
            same = said.setdefault(variant.identity, name)
            if same != name:
                raise UserError(f"The arms '{same}' and '{name}' are the same: they would give equal numbers. Give each arm "
                                "something of its own.")

    @cached_property
    def variants(self) -> dict[str, Recipe]:
        """The recipe of each arm, without steps that compare."""
        made = {n: a if isinstance(a, Recipe) else self.base.edit(**a) if a else self.base for n, a in self.arms.items()}
        return {name: _without(recipe, COMPARES) for name, recipe in made.items()}

    def recipe(self) -> Recipe:
        """All arms and seeds as one recipe."""
        steps: dict[str, Any] = {}
        for (arm, seed), keys in self._keys.items():
            text = self.variants[arm].text["steps"]
            for node in self.variants[arm].nodes:
                name = self._names[keys[node.name]]
                if name not in steps:
                    inputs = {wanted: self._names[keys[source]] for wanted, source in node.inputs.items()}
                    own = self._seed(node, arm, seed)
                    given = ("inputs", "seed") if type(node.step).seeded else ("inputs",)
                    step = {k: v for k, v in copy.deepcopy(text[node.name]).items() if k not in given}
                    steps[name] = {**step, **({"inputs": inputs} if inputs else {}),
                                   **({} if own is None else {"seed": own})}
        about = f"{len(self.arms)} arms ({', '.join(self.arms)}), {len(self.seeds)} seed{'s' * (len(self.seeds) > 1)}"
        return Recipe({"name": f"{self.base.name} grid", "about": about, "seed": self.base.seed, "steps": steps})

    def names(self, arm: str, seed: int) -> dict[str, str]:
        """Steps of the arm's own recipe -> the steps of the merged recipe that stand for them."""
        return {step: self._names[key] for step, key in self._keys[arm, seed].items()}

    def evaluation(self, arm: str, wanted: str | None = None) -> str:
        """The step of an arm's recipe whose scores count: the one that reads what was trained, unless one is named.

        An audit's findings are scores, too, where it is named.

        Raises:
            UserError: it is no such step, or there are several to choose from.
        """
        there = evaluations(self.variants[arm])
        if wanted is not None:
            there += audits(self.variants[arm])
            if wanted not in there:
                raise UserError(f"The recipe has no evaluation '{wanted}'. {nearest(wanted, there)}")
            return wanted
        found = [n for n in there if n in self.trained(arm)] or there
        if len(found) != 1:
            raise UserError(f"The recipe has {len(found)} evaluations ({', '.join(found)}). Say whose scores are compared."
                            if found else "The recipe evaluates nothing: it needs a step 'evaluate'.")
        return found[0]

    def trained(self, arm: str) -> list[str]:
        """The steps of an arm's recipe that train, or read what was trained."""
        found: list[str] = []
        for node in self.variants[arm].nodes:
            if node.step.training() or set(node.inputs.values()) & set(found):
                found.append(node.name)
        return found

    def _seed(self, node: Node, arm: str, seed: int) -> int | None:
        """The step's own seed: that of the training where one is behind it, else what its recipe says."""
        return seed if type(node.step).seeded and node.name in self.trained(arm) else node.seed

    @cached_property
    def _keys(self) -> dict[tuple[str, int], dict[str, str]]:
        """(arm, seed) -> step -> what decides its result: equal keys are one step."""
        found: dict[tuple[str, int], dict[str, str]] = {}
        for arm, variant in self.variants.items():
            for seed in self.seeds:
                keys: dict[str, str] = {}
                for node in variant.nodes:
                    keys[node.name] = digest({
                        "scope": node.scope, "step": node.step.identity, "seed": self._seed(node, arm, seed),
                        "inputs": {wanted: keys[source] for wanted, source in node.inputs.items()}})
                found[arm, seed] = keys
        return found

    @cached_property
    def _names(self) -> dict[str, str]:
        """Key -> name in the merged recipe: NAME, NAME@ARM, NAME@s1 or NAME@ARM@s1; several arms are joined by +."""
        users: dict[str, list[tuple[str, int]]] = {}
        named: dict[str, str] = {}
        for cell, keys in self._keys.items():
            for step, key in keys.items():
                users.setdefault(key, []).append(cell)
                named.setdefault(key, step)
        names = {}
        for key, cells in users.items():
            arms = dict.fromkeys(arm for arm, _ in cells)
            of_arm = "" if len(arms) == len(self.arms) else "@" + "+".join(arms)
            of_seed = f"@s{cells[0][1]}" if named[key] in self.trained(cells[0][0]) else ""
            names[key] = named[key] + of_arm + of_seed
        return names


@dataclass(frozen=True)
class Cost:
    """What trainings took. `seconds` and `tokens` are of optimizer steps; `step_seconds` of the whole steps, with what they
    prepare, estimate and check. `tokens` counts every token that went through the model in them, padding left out.
    """

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    trained_parameters: int = 0
    artifact_bytes: int = 0
    peak_mb: float = 0.0
    trainings: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Of the optimizer steps."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def and_(self, later: Cost) -> Cost:
        """Of one after the other: amounts are summed, of memory the higher counts, of what is left the later."""
        return Cost(self.steps + later.steps, self.tokens + later.tokens, self.seconds + later.seconds,
                    self.step_seconds + later.step_seconds, later.trained_parameters, later.artifact_bytes,
                    max(self.peak_mb, later.peak_mb), self.trainings + later.trainings)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**{n: getattr(self, n) for n in self.__dataclass_fields__}, "tokens_per_second": self.tokens_per_second}


@dataclass(frozen=True)
class Cell:
    """One arm under one seed: its scores, its cost (that of searches before it apart), and its steps."""

    arm: str
    seed: int
    scores: Scores
    cost: Cost
    search: Cost
    evaluation: Artifact
    trainings: tuple[Artifact, ...] = ()


@dataclass(frozen=True)
class Results:
    """What a finished grid holds. `references` are evaluations that all arms share, such as that of the untuned base."""

    cells: list[Cell]
    higher_is_better: dict[str, bool]
    references: dict[str, Scores] = field(default_factory=dict)

    def scores(self, arm: str) -> list[Scores]:
        """One a seed, in the order of the grid's seeds."""
        return [c.scores for c in self.cells if c.arm == arm]


def results(run: Run, grid: Grid, evaluation: str | None = None) -> Results:
    """Read the scores and costs of every cell.

    evaluation: the step of the arms' recipes whose scores count; may be left out where one alone reads what was trained.
    Arms that do not have it are left out, unless none has.

    Raises:
        UserError: it is no such step, or there are several to choose from.
    """
    cells, better = [], {}
    there = {arm: variant for arm, variant in grid.variants.items() if any(n.name == evaluation for n in variant.nodes)}
    for arm, variant in (there or grid.variants).items():
        step = grid.evaluation(arm, evaluation)
        for seed in grid.seeds:
            names = grid.names(arm, seed)
            said = run.step(names[step])
            behind = [names[n] for n in _behind(variant, step)]
            costs = [(run.step(n), _cost(run, n)) for n in behind if "fit" in run.step(n).meta]
            search, cost = Cost(), Cost()
            for artifact, spent in costs:
                if artifact.kind in MODEL_KINDS:
                    cost = cost.and_(spent)
                else:
                    search = search.and_(spent)
            better.update(said.meta.get("metrics", {}))
            cells.append(Cell(arm, seed, scores_of(said), cost, search, said,
                              tuple(a for a, _ in costs if a.kind in MODEL_KINDS)))
    return Results(cells, better, _references(run, grid))


def scores_of(artifact: Artifact) -> Scores:
    """The scores of an evaluation, where the metric applies, or the numbers of an audit."""
    if (artifact.folder / findings.FILE).exists():
        return findings.scores(artifact)
    found: Scores = {}
    for row in read_lines(artifact.folder / "scores.jsonl"):
        if row["value"] is not None:
            found.setdefault((row["set"], row["metric"]), {})[row["id"]] = (row["cluster"], float(row["value"]))
    return found


def evaluations(recipe: Recipe) -> list[str]:
    """The steps of a recipe that leave scores of an arm."""
    return [n.name for n in recipe.nodes if type(n.step).output == "records" and "arm" in type(n.step).model_fields]


def audits(recipe: Recipe) -> list[str]:
    """The steps of a recipe that audit."""
    return [n.name for n in recipe.nodes if n.step.info.name == "audit"]


def _references(run: Run, grid: Grid) -> dict[str, Scores]:
    found: dict[str, Scores] = {}
    first, *others = grid.arms
    for step in evaluations(grid.variants[first]):
        name = grid.names(first, grid.seeds[0])[step]
        if step not in grid.trained(first) and all(grid.names(a, grid.seeds[0]).get(step) == name for a in others):
            artifact = run.step(name)
            found[str(artifact.meta["arm"])] = scores_of(artifact)
    return found


def _behind(recipe: Recipe, step: str) -> list[str]:
    """The steps that a step rests on, in the order of the recipe."""
    needed = {step}
    for node in reversed(recipe.nodes):
        if node.name in needed:
            needed.update(node.inputs.values())
    return [n.name for n in recipe.nodes if n.name in needed]


def _cost(run: Run, name: str) -> Cost:
    """The cost of one finished step, from its artifact's record."""
    artifact = run.step(name)
    fit = artifact.meta["fit"]
    took = read_json(run.folder / "steps" / name / "step.json")["seconds"]
    size = sum(p.stat().st_size for p in artifact.folder.rglob("*.safetensors")) if artifact.kind in MODEL_KINDS else 0
    return Cost(int(fit["steps"]), int(fit["tokens"]), float(fit["seconds"]), float(took), int(fit["trained_parameters"]), size,
                float(fit["peak_mb"]), int(fit.get("trainings", 1)))


def _without(recipe: Recipe, use: str) -> Recipe:
    """The recipe without the steps of one component, which nothing reads."""
    gone = {n.name for n in recipe.nodes if n.step.info.name == use}
    if not gone:
        return recipe
    return Recipe({**recipe.text, "steps": {n: s for n, s in recipe.text["steps"].items() if n not in gone}})
