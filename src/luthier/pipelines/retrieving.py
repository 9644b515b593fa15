"""A tuned retriever as an edit of a recipe: pairs, training, a second index, and a choice on dev."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from luthier.core.errors import UserError
from luthier.core.recipe import Recipe

NEEDED = ("documents", "split", "encoder", "index")
# A batch is the pool of negatives: larger than for other objectives. One pass or two: question writers repeat themselves.
TRAINING: dict[str, Any] = {
    "use": "fit", "tasks": [{"data": "pairs.train", "objective": "weighted-contrastive:negatives=2"}], "method": "full",
    "learning_rate": 2e-5, "batch_rows": 32, "micro_rows": 8, "length": {"epochs": 2}, "dtype": "float32",
    "max_tokens_per_example": 256}


def with_tuned_retriever(recipe: Recipe, clicks: str | None = None) -> Recipe:
    """The recipe with an encoder tuned on its training questions, and on clicks where there are some.

    Every later step that read `encoder` and `index` reads the chosen ones: the base's, or the tuned encoder's where dev
    says that it finds better. What the pairs are made of keeps the base's: a split that shows distractors shows those of
    the base. `clicks` is a file of `{"query", "doc_id", "clicks", "impressions"}` rows.

    Raises:
        UserError: the recipe has no step of a name that is needed.
    """
    text = copy.deepcopy(recipe.text)
    steps = text["steps"]
    missing = [name for name in NEEDED if name not in steps]
    if missing:
        raise UserError(f"A tuned retriever needs the steps {', '.join(NEEDED)}; this recipe has no '{missing[0]}'.")
    before = _leading_to(steps, NEEDED)
    for name, step in steps.items():
        wired = step.get("inputs") or {}
        for wanted, source in wired.items():
            if name not in before and source in ("encoder", "index"):
                wired[wanted] = f"chosen-{source}"
    steps["retriever-pairs"] = {
        "use": "retriever-pairs", **({"clicks": clicks} if clicks else {}),
        "inputs": {"examples": "split", "documents": "documents", "index": "index", "encoder": "encoder"}}
    steps["retriever-tuned"] = {
        **copy.deepcopy(TRAINING), "inputs": {"base": "encoder", "pairs": "retriever-pairs"}}
    steps["tuned-encoder"] = {"use": "whole-model", "inputs": {"base": "encoder", "tuned": "retriever-tuned"}}
    steps["tuned-index"] = {**copy.deepcopy(steps["index"]),
                            "inputs": {"documents": "documents", "encoder": "tuned-encoder"}}
    both = {"index": "index", "tuned-index": "tuned-index"}
    steps["chosen-encoder"] = {
        "use": "choose-encoder", "inputs": {"base": "encoder", "tuned": "tuned-encoder", **both, "examples": "split"}}
    steps["chosen-index"] = {"use": "chosen-index", "inputs": {"encoder": "chosen-encoder", **both}}
    return Recipe(text)


def _leading_to(steps: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """These steps and all that they read."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in steps and name not in found:
            found.add(name)
            waiting += (steps[name].get("inputs") or {}).values()
    return found
