"""Arms of studies that look at a model as a method begins with it, before any step; they may have a base of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

# Edits that put Gemma 3 270M in the place of the tiny model of those arms.
ON_GEMMA: Mapping[str, Any] = {"first.use": "base", "first.inputs": {}, "first.model": "gemma3-270m"}


def docs_recipe(name: str, length: Mapping[str, Any]) -> dict[str, Any]:
    """A tiny Llama that knows the general texts of `docstrings` reads those of the other domain; both are read in the end."""
    return {"name": name, "seed": 0, "steps": {
        "docs": {"use": "docstrings"},
        "base": {"use": "pretrained", "inputs": {"examples": "docs"}},
        "tuned": {"use": "fit", "tasks": [{"data": "examples.train", "objective": "pretrain"}], "method": "full",
                  "length": dict(length), "dtype": "float32", "inputs": {"base": "base", "examples": "docs"}},
        "score": {"use": "evaluate", "arm": "tuned", "sets": ["target", "source", "dev"], "metrics": ["bits-per-byte"],
                  "inputs": {"base": "base", "tuned": "tuned", "examples": "docs"}},
    }}


def started(recipe: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The recipe with `method` and no step, on a base of the step `first`, which begins as the recipe's own."""
    text = copy.deepcopy(dict(recipe))
    steps = {("first" if name == "base" else name): step for name, step in text["steps"].items()}
    for step in steps.values():
        step["inputs"] = {wanted: "first" if source == "base" else source for wanted, source in step.get("inputs", {}).items()}
        if not step["inputs"]:
            del step["inputs"]
    steps["tuned"] |= {"method": method, "length": {"steps": 0}}
    return {**text, "steps": steps}
