"""What `luthier plan` does: the recipe that would run, and its plans by machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from luthier.core.errors import UserError
from luthier.core.recipe import Recipe, load_recipe
from luthier.pipelines import jobs


def recipe_for(paths: Sequence[str], *, recipe: str | None = None, objective: str | None = None,
               questions: str | None = None) -> Recipe:
    """The recipe of `tune` for a file that a reader of rows knows, of `adapt` for documents; or the one named.

    Raises:
        UserError: neither data nor a recipe is named.
    """
    if not paths and recipe is None:
        raise UserError("Name what would be trained on: luthier plan DATA.jsonl, luthier plan DOCS, or --recipe FILE.")
    if not paths and recipe is not None:
        return load_recipe(recipe)
    if command_for(paths) == "tune":
        return jobs.tune(paths[0], recipe=recipe or "tune", objective=objective)
    return jobs.adapt(paths, recipe=recipe or "adapt", questions=questions)


def command_for(paths: Sequence[str]) -> str:
    """`tune` for one path that a reader of rows knows, `adapt` for documents."""
    from luthier.pipelines.steps.read import reads

    return "tune" if len(paths) == 1 and reads(Path(paths[0])) else "adapt"


def plans(recipe: Recipe, on: str = "", exact: bool = False) -> dict[str, Any]:
    """`{"recipe", "plans": [...]}`: this machine first, then each GPU; with `changes` where one does not fit.

    Raises:
        UserError: the recipe's steps refuse their input, or a GPU is unknown.
    """
    from luthier.engine import planning
    from luthier.engine.hardware import named_gpus
    from luthier.engine.workshop import Engine

    gpus = named_gpus(on)
    for node in recipe.nodes:
        # A base that is larger than the memory is what a plan is asked about; every other mistake is refused.
        if node.step.info.name != "base":
            node.step.check()
    engine = Engine(exact=exact)
    engine.decide({})
    here = planning.plan(recipe, engine)
    found = []
    for one, gpu in [(here, None), *((planning.on_gpu(here, g), g) for g in gpus)]:
        row = one.to_dict()
        if not one.fits:
            elsewhere: Callable[..., Any] = partial(planning.on_gpu, gpu=gpu) if gpu else lambda made: made
            row["changes"] = planning.cheaper(recipe, engine, one.available_mb, elsewhere)
        found.append(row)
    return {"recipe": recipe.name, "plans": found}
