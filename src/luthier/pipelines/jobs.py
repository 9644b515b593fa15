"""The shipped jobs as edits of their recipes: what `luthier adapt` and `luthier tune` run."""

from __future__ import annotations

import copy
import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from luthier.core.artifact import open_artifact
from luthier.core.errors import UserError
from luthier.core.recipe import Recipe, load_recipe
from luthier.core.run import Run
from luthier.engine.executor import Watcher, check_executor, execute
from luthier.pipelines.overrides import override
from luthier.pipelines.sources import format_of, is_artifact
from luthier.pipelines.steps.tasks import Tasks
from luthier.techniques.data._formats import FORMATS

DEMO_PAGES = 10
PROGRAMS = ["pass-at-k"]
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def demo_folder() -> Path:
    """The demo's documents: package data, or `examples/` in a checkout.

    Raises:
        UserError: neither is there.
    """
    installed = Path(str(files("luthier"))) / "demo" / "python-reference"
    checkout = Path(__file__).resolve().parents[3] / "examples" / "python-reference"
    for folder in (installed, checkout):
        if (folder / "questions.jsonl").exists():
            return folder
    raise UserError("The demo's documents are missing from this installation. Reinstall luthier.")


def adapt(paths: Sequence[str], *, recipe: str = "adapt", questions: str | None = None) -> Recipe:
    """The recipe that adapts a base to documents; `questions` is a file of hand-written test questions."""
    made = load_recipe(recipe)
    if paths:
        made = made.edit(**{"documents.paths": list(paths)})
    return _with_questions(made, questions, "refuse") if questions else made


def demo(pico: bool = False) -> Recipe:
    """The demo: Python's language reference. With `pico`, ten pages and models with random weights."""
    folder = demo_folder()
    pages = sorted((folder / "pages").glob("*.md"), key=lambda p: (-p.stat().st_size, p.name))
    chosen = sorted(pages[:DEMO_PAGES]) if pico else pages
    recipe = adapt([str(p) for p in sorted(chosen)] if pico else [str(folder / "pages")])
    recipe = _with_questions(recipe, str(folder / "questions.jsonl"), "drop" if pico else "refuse")
    recipe = recipe.edit(name="demo")
    if pico:
        recipe = recipe.edit(**{
            "base.model": "pico", "encoder.model": "pico-encoder", "questions.sources": ["headings"],
            "questions.filters": ["self-contained", "answerable:gain=-100", "distinct"], "tuned.length": {"epochs": 2},
            "name": "demo pico", "about": "Every step of the demo on ten pages and random weights: answers are noise."})
    return recipe


def _with_questions(recipe: Recipe, path: str, missing: str) -> Recipe:
    text = copy.deepcopy(recipe.text)
    steps = text["steps"]
    steps["test"] = {"use": "test-questions", "path": path, "missing_quotes": missing, "inputs": {"documents": "documents"}}
    steps["split"].setdefault("inputs", {})["test"] = "test"
    return Recipe(text)


def tune(data: str | Sequence[str], *, recipe: str = "tune", objective: str | None = None, sets: Sequence[str] = ()) -> Recipe:
    """The recipe that tunes on one or several files of examples; their format decides the objective unless one is named.

    A folder that `luthier data` left, or a saved dataset, is read as it is, with its own division where it has one. Of
    `sets`, those of the step `rows` are applied before the rows are looked at.

    Several files are one set of rows, unless one of them is written `FILE=WEIGHT`: then each step draws from each file
    in proportion to its weight, 1 where none is written.
    """
    weights = _weighted([data] if isinstance(data, str) else data)
    made = _tune(list(weights), recipe, objective, [s for s in sets if s.strip().startswith("rows.")])
    if any(weight is not None for weight in weights.values()):
        made = _mixed(made, {Path(path).name: 1.0 if weight is None else weight for path, weight in weights.items()})
    return made


def _weighted(data: Sequence[str]) -> dict[str, float | None]:
    """Files by path with the weight that is written behind them."""
    found: dict[str, float | None] = {}
    for text in data:
        path, equals, weight = text.rpartition("=")
        if not equals or Path(text).exists():
            path, weight = text, ""
        try:
            number = float(weight) if weight else None
        except ValueError:
            raise UserError(f"{text}: '{weight}' is not a weight. Write FILE=WEIGHT, such as {path}=3.") from None
        if number is not None and not 0 < number < float("inf"):
            raise UserError(f"{text}: a weight is greater than 0.")
        if path in found:
            raise UserError(f"{path} is named twice. Name each file once.")
        found[path] = number
    return found


def _mixed(recipe: Recipe, weights: Mapping[str, float]) -> Recipe:
    """The training rows of each task drawn from the files in these proportions."""
    text = copy.deepcopy(recipe.text)
    for task in text["steps"]["tuned"]["tasks"]:
        task["data"] = {f"{task['data']}:{name}": weight for name, weight in weights.items()}
    return Recipe(text)


def _tune(paths: Sequence[str], recipe: str, objective: str | None, sets: Sequence[str]) -> Recipe:
    made = load_recipe(recipe)
    manifest = next((n.name for n in made.nodes if isinstance(n.step, Tasks)), None)
    if manifest is not None:
        return _manifest(made, manifest, paths, objective)
    made, found = _with_rows(made, paths, sets)
    _refuse_unlearned(paths[0], found, objective)
    form = FORMATS[found]
    if form.recipe and recipe == "tune" and objective is None:
        raise UserError(f"{paths[0]} holds {found} rows, which a model learns by trying them, run after run: luthier tune "
                        f"{paths[0]} --recipe {form.recipe}")
    if found == "raw-text" and objective in (None, "pretrain"):
        return _read_on(made)
    if found == "preference" and objective != "supervised":
        return _preferences(made, objective or "dpo")
    if form.spoken and "arm-base" in made.text["steps"]:
        made = made.edit(**{"arm-base.shots": [0]})  # a conversation within a conversation is no solved example
    labels = objective == "classify" if objective else form.learned_by == "classify"
    if labels and made.text["steps"]["tuned"].get("use") == "fit":  # a head that is solved for has no training to be told of
        text = copy.deepcopy(made.text)
        steps = text["steps"]
        steps["tuned"] |= {"tasks": [{"data": "examples.train", "objective": "classify", "head": "linear"}],
                           "over_long": "truncate", "batch_rows": 16, "max_tokens_per_example": 128}
        steps["arm-tuned"]["metrics"] = ["accuracy"]
        # An untuned base has no labels to answer with: a majority vote is what it is compared with.
        steps["arm-base"] = {"use": "majority", "inputs": {"examples": "split"}}
        made = Recipe(text)
    elif objective:
        made = made.edit(**{"tuned.tasks": [{"data": "examples.train", "objective": objective}]})
    return made


def _manifest(recipe: Recipe, step: str, paths: Sequence[str], objective: str | None) -> Recipe:
    """The recipe on the tasks of a manifest."""
    if len(paths) > 1 or Path(paths[0]).suffix not in (".yaml", ".yml"):
        raise UserError(f"The recipe '{recipe.text['name']}' reads one manifest of tasks (.yaml); found: {', '.join(paths)}.")
    if objective:
        raise UserError(f"objective = {objective}: each task of a manifest has its own, by its type. Leave it out.")
    return recipe.edit(**{f"{step}.path": paths[0]})


def _with_rows(recipe: Recipe, paths: Sequence[str], sets: Sequence[str]) -> tuple[Recipe, str]:
    """The recipe with these rows, and their format: a file is read and divided, what is divided already stays so."""
    from luthier.pipelines.steps.read import Read, splits_of

    if not is_artifact(paths[0]):
        made = recipe.edit(**{"rows.path": paths[0], **({"rows.also": list(paths[1:])} if paths[1:] else {})})
        made = override(made, sets=sets)
        found = next((n.step for n in made.nodes if isinstance(n.step, Read)), Read(path=paths[0])).found_format()
        return (_divided(made) if splits_of(Path(paths[0])) else made), found
    if len(paths) > 1 or sets:
        raise UserError(f"{paths[0]} is read as it is: no further file goes with it, and its rows have no settings.")
    given = open_artifact(Path(paths[0]))
    if given.kind != "examples":
        raise UserError(f"{paths[0]} holds {given.kind}; examples are tuned on. Make some with: luthier data synthesize "
                        f"{paths[0]} --out DIR, or adapt to the documents with luthier adapt.")
    text = copy.deepcopy(recipe.text)
    existing = {"use": "existing", "path": paths[0], "kind": "examples"}
    if {"train", "dev", "unseen"} <= set(given.subsets):
        del text["steps"]["rows"]
        text["steps"]["split"] = existing
        return Recipe(text), format_of(given)
    text["steps"]["rows"] = existing
    made = Recipe(text)
    return (made if given.subsets == ["all"] else _divided(made)), format_of(given)


def _divided(recipe: Recipe) -> Recipe:
    """The recipe for rows that come divided."""
    text = copy.deepcopy(recipe.text)
    text["steps"]["split"] = {"use": "own-splits", "inputs": {"rows": "rows"}}
    return Recipe(text)


def _refuse_unlearned(path: str, found: str, objective: str | None) -> None:
    """Raises UserError for rows that none of the objectives here learns, unless another one is named."""
    ours = {form.learned_by for form in FORMATS.values()}
    if FORMATS[found].learned_by or (objective is not None and objective.partition(":")[0] not in ours):
        return
    learned = ", ".join(f"{name} ({form.learned_by})" for name, form in FORMATS.items() if form.learned_by)
    raise UserError(f"{path} holds {found} rows, which no objective learns yet. They can be read, curated and divided (luthier "
                    f"data), or learned by an objective of your own (--objective NAME). What is learned today: {learned}. "
                    "Tags and scores can be learned as text when each row is written as prompt and completion.")


def _preferences(recipe: Recipe, objective: str) -> Recipe:
    """Pairs of answers: what is measured is which of the two a model prefers, and nothing is generated."""
    metrics = ["preference-accuracy"]
    return recipe.edit(**{
        "tuned.tasks": [{"data": "examples.train", "objective": objective}], "comparison.metrics": metrics,
        "arm-base.metrics": metrics, "arm-base.shots": [0], "arm-base.stops": ["token"], "arm-tuned.metrics": metrics})


def _read_on(recipe: Recipe) -> Recipe:
    """Raw texts: all tokens are learned, long texts become several rows, and arms read the texts kept out."""
    made = recipe.edit(**{
        "tuned.tasks": [{"data": "examples.train", "objective": "pretrain"}], "tuned.over_long": "split",
        "comparison.metrics": ["bits-per-byte"]})
    for arm in ("arm-base", "arm-tuned"):
        made = made.edit(**{f"{arm}.metrics": ["bits-per-byte"], f"{arm}.shots": [0], f"{arm}.stops": ["token"]})
    return made


def run(recipe: Recipe, folder: Path, *, fresh: bool = False, exact: bool = False, watcher: Watcher | None = None,
        report: Callable[[Run], Path] | None = None, executor: str = "local", with_card: bool = True) -> Run:
    """Execute a recipe in a run folder and write its report, and the card of what it tuned.

    Raises:
        UserError: bad input, with every problem that can be seen before the start; or the disk is full.
        GateError: a receipt differs.
    """
    from luthier.engine.workshop import Engine
    from luthier.pipelines import card
    from luthier.pipelines.report import write

    check_executor(executor)
    _check(recipe, folder)
    try:
        finished = execute(recipe, folder, Engine(exact=exact), watcher, fresh, executor)
        (report or write)(finished)
        if with_card:
            card.write(finished)
    except Exception as error:
        number = _disk_error(error)
        if number is None:
            raise
        raise UserError(f"Can't write to {folder}: {os.strerror(number)}. What is finished is kept; make room and run "
                        "the same command again.") from error
    return finished


def _check(recipe: Recipe, folder: Path) -> None:
    """Refuse a place that can't hold a run, and whatever the steps refuse: all problems at once."""
    problems: list[str] = []
    if folder.exists() and not folder.is_dir():
        problems.append(f"{folder} is a file. Give a new or empty folder with --out.")
    for node in recipe.nodes:
        try:
            node.step.check()
        except UserError as error:
            problems.append(str(error))
        for top in getattr(node.step, "paths", ()):
            if Path(top).is_dir() and folder.resolve().is_relative_to(Path(top).resolve()):
                problems.append(f"{folder} lies within the documents of {top}: what a run writes there would be read as "
                                "documents. Give a folder outside with --out.")
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def _disk_error(error: BaseException) -> int | None:
    """The number of a full or closed disk's error. Native libraries raise their own types and only name the number."""
    named = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(named[1]) if named else None
    return number if number in DISK_ERRORS else None


def evaluate(source: Run, data: str) -> Recipe:
    """The recipe that scores a run's base and tuned model on further rows: a file, a saved dataset, what `luthier data` left.

    Rows that come divided are scored set by set, without those that are there to be learned.

    Raises:
        UserError: the run has no tuned model, or the rows are not of the kind it was tuned on.
    """
    if not source.has("tuned"):
        raise UserError(f"{source.folder} has no tuned model. Finish it first: run its command again.")
    rows, found, sets = _tested(data)
    labels = bool(source.step("tuned").meta.get("heads"))
    texts = any(e.task == "text" for e in islice(source.step("split").examples("train"), 1))
    if labels != (FORMATS[found].learned_by == "classify") or texts != (found == "raw-text"):
        wanted = "text-label" if labels else "raw-text" if texts else \
            "question-answer, prompt-completion, messages or preference"
        raise UserError(f"{data} holds {found} rows; the model of {source.folder} was tuned on {wanted} rows. "
                        "Give rows of that format.")
    pairs = found == "preference"
    metrics = ["accuracy"] if labels else ["bits-per-byte"] if texts else ["preference-accuracy"] if pairs else \
        ["exact-match", "f1", "stops"]
    place = str(source.folder.resolve() / "steps")
    asked = sets or ["test"]
    steps: dict[str, Any] = {
        "base": base_step(source),
        "rows": rows,
        "trained": {"use": "existing", "path": f"{place}/split", "kind": "examples"},
        "tuned": {"use": "existing", "path": f"{place}/tuned", "kind": source.step("tuned").kind},
        "test": {"use": "test-rows", "inputs": {"rows": "rows", "trained": "trained"}, **({"sets": sets} if sets else {})},
        "arm-tuned": {"use": "evaluate", "arm": "tuned", "sets": asked, "metrics": metrics,
                      "inputs": {"base": "base", "tuned": "tuned", "examples": "test"}},
    }
    if texts or pairs or FORMATS[found].spoken:
        steps["arm-base"] = {"use": "evaluate", "arm": "base", "sets": asked, "metrics": metrics,
                             "inputs": {"base": "base", "examples": "test"}}
    elif labels:
        steps["arm-base"] = {"use": "majority", "sets": asked, "inputs": {"examples": "test"}}
    elif found == "program-tests":
        metrics = _programs(source, steps, asked)
    else:
        steps["arm-base"] = {"use": "evaluate", "arm": "base", "sets": asked, "metrics": metrics, "shots": [0, 3],
                             "stops": ["token", "newline"], "inputs": {"base": "base", "examples": "test"}}
    steps["comparison"] = {"use": "compare-arms", "inputs": {"base": "arm-base", "tuned": "arm-tuned"},
                           **({"metrics": metrics} if texts or pairs or metrics == PROGRAMS else {})}
    return Recipe({"name": "evaluate", "about": "A run's base and tuned model on further rows.",
                   "seed": int(source.record["seed"]), "steps": steps})


def _programs(source: Run, steps: dict[str, Any], asked: list[str]) -> list[str]:
    """Arms that write programs, which are run. A model of the recipe `leti` is a whole one, asked for good programs."""
    whole = "merged" in source.step("tuned").meta
    tuned = {"base": "tuned"} if whole else {"base": "base", "tuned": "tuned"}
    for arm, inputs, metric in (("base", {"base": "base"}, {}), ("tuned", tuned, {"prefix": "<|good|>"} if whole else {})):
        steps[f"arm-{arm}"] = {"use": "evaluate", "arm": arm, "sets": asked, "metrics": [{"use": "pass-at-k", **metric}],
                               "inputs": {**inputs, "examples": "test"}}
    return PROGRAMS


def _tested(data: str) -> tuple[dict[str, Any], str, list[str]]:
    """The step that reads rows to be scored, their format, and which sets are scored where they come divided."""
    from luthier.pipelines.sources import source
    from luthier.pipelines.steps.own_splits import DEV, TRAIN
    from luthier.pipelines.steps.read import Read, splits_of
    from luthier.pipelines.steps.split import LEARNED

    step = source(data, ("examples",))
    if step["use"] == "existing":
        given = open_artifact(Path(data))
        found, subsets = format_of(given), given.subsets
    else:
        found, subsets = Read(path=data).found_format(), splits_of(Path(data)) or ["all"]
    if subsets == ["all"]:
        return step, found, []
    sets = [name for name in subsets if name not in (*LEARNED, *TRAIN, *DEV)]
    if not sets:
        raise UserError(f"{data} comes divided into {', '.join(subsets)}: none of it is there to be tested on. Give a file of "
                        "rows, or divide anew: luthier data split.")
    return step, found, sets


def base_step(source: Run) -> dict[str, Any]:
    """The step that finds a run's base again."""
    base = source.step("base").meta
    name = base["name"] if base["name"] in _packaged() else \
        f"{base['hub']}@{base['revision']}" if "hub" in base else base["path"]
    return {"use": "base", "model": name, "quantize": base.get("quantize", "none")}


def _packaged() -> frozenset[str]:
    from luthier.engine.packages import PACKAGES

    return frozenset(PACKAGES)
