"""Arms of studies that look at a model as a method begins with it, before any step; they may have a base of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from luthier.core.study import Scale

# Edits that put Gemma 3 270M in the place of the tiny model of those arms.
ON_GEMMA: Mapping[str, Any] = {"first.use": "base", "first.inputs": {}, "first.model": "gemma3-270m"}


# Texts of one module are one unit: 120 texts are of about 28 modules, and one or two fewer under other versions of Python.
DOCS_UNITS: Mapping[str, int] = {"target": 25, "source": 42, "dev": 15}


def docs_scales(smoke: tuple[str, ...]) -> dict[str, Scale]:
    """The scales of studies on Python's documentation; `smoke` names the arms of the smallest."""
    tiny: dict[str, Any] = {f"docs.{name}_rows": n for name, n in (("pretrain", 12), ("train", 8), ("dev", 2), ("test", 4))}
    tiny |= {f"{step}.{field}": n for step in ("base", "first")
             for field, n in (("width", 32), ("layers", 1), ("epochs", 1), ("vocabulary", 300))}
    return {"smoke": Scale(1, {"target": 4, "source": 4, "dev": 2}, {**tiny, "tuned.length": {"steps": 1}}, arms=smoke,
                           about="every line, no evidence"),
            "default": Scale(3, DOCS_UNITS), "large": Scale(3, DOCS_UNITS, ON_GEMMA, about="the first part with Gemma 3 270M")}


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
