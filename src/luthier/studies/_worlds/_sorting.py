"""What studies share in which MiniLM learns to sort short texts: the recipe, its scales, and methods at several rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.study import Choice, Measure, Scale

RIGHT, DEV = Measure("accuracy"), Measure("accuracy", "dev")
Methods = Mapping[str, tuple[str, tuple[float, ...]]]  # name -> a method and the rates that it has to choose from


def sorting_recipe(name: str, steps: int, **texts: Any) -> dict[str, Any]:
    """MiniLM with a linear head learns the labels of `short-texts`; `texts` are settings of the world."""
    return {"name": name, "seed": 0, "steps": {
        "base": {"use": "base", "model": "minilm"},
        "texts": {"use": "short-texts", **texts},
        "tuned": {"use": "fit", "tasks": [{"data": "examples.train", "objective": "classify", "head": "linear"}],
                  "method": "full", "length": {"steps": steps}, "batch_rows": 16, "over_long": "truncate",
                  "max_tokens_per_example": 48, "dtype": "float32", "inputs": {"base": "base", "examples": "texts"}},
        "score": {"use": "evaluate", "arm": "tuned", "sets": ["test", "dev"], "metrics": ["accuracy"],
                  "inputs": {"base": "base", "tuned": "tuned", "examples": "texts"}},
    }}


def smoke(steps: int, arms: tuple[str, ...], units: Mapping[str, int] | None = None, **edits: Any) -> Scale:
    """The smallest scale: `steps` of a training on invented reviews, whose rows are units."""
    return Scale(1, {"test": 4, "dev": 2, **(units or {})}, {
        "base.model": "pico-encoder", "texts.problem": "sentiment", "texts.train": 8, "texts.dev": 2, "texts.tests": 4,
        "tuned.length": {"steps": steps}, "tuned.max_tokens_per_example": 16, **edits}, arms=arms,
        about="every line, no evidence")


def at_rates(methods: Methods) -> dict[str, dict[str, Any]]:
    """An arm for each method and rate, by the names that `by_dev` chooses from."""
    return {f"{name}-{rate:g}": {"tuned.method": method, "tuned.learning_rate": rate}
            for name, (method, rates) in methods.items() for rate in rates}


def by_dev(methods: Methods) -> tuple[Choice, ...]:
    """Each method at the rate that is best on dev."""
    return tuple(Choice(name, tuple(f"{name}-{rate:g}" for rate in rates), DEV) for name, (_, rates) in methods.items())
