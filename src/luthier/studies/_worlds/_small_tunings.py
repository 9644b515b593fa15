"""What studies of small tunings share: MiniLM tells the sentiment of invented reviews, each way at its better rate.

A method is a row: its name, how it is written, and the learning rates that it may choose from. All arms take equal steps over
the same rows; a training seed draws the head, the order and what a method draws. Dev and test are the same for all. Rates
were set after a look at dev with seed 0: those set first (full 2e-5, norms 5e-4, adapters 3e-4) learned next to nothing. So
were 160 steps: after 60 most were in the middle of learning, and seeds of one method lay further apart than methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.study import Choice, Claim, Guard, Measure, Scale

WORLD = "real model (MiniLM) on invented reviews"
TEST, DEV = (Measure("accuracy", on) for on in ("test", "dev"))
TESTS = 300  # reviews of the test; half as many of dev
FEW: tuple[float, float] = (3e-3, 1e-2)  # rates of few weights
FULL: tuple[str, tuple[float, float]] = ("full", (1e-4, 3e-4))
HEAD: tuple[str, tuple[float, float]] = ("layer-freezing:train_last=0", FEW)
Methods = Mapping[str, tuple[str, tuple[float, ...]]]


def tuned_recipe(name: str, rows: int, steps: int) -> dict[str, Any]:
    """Reviews, MiniLM with a linear head that learns so many of them in so many steps of 8, and what it says of others."""
    return {"name": name, "seed": 0, "steps": {
        "base": {"use": "base", "model": "minilm"},
        "rows": {"use": "labelled-reviews", "train": rows, "tests": TESTS},
        "tuned": {"use": "fit", "tasks": [{"data": "examples.train", "objective": "classify", "head": "linear"}],
                  "method": "full", "length": {"steps": steps}, "schedule": "linear:warmup=0.1", "batch_rows": 8,
                  "over_long": "truncate", "max_tokens_per_example": 64, "dtype": "float32",
                  "inputs": {"base": "base", "examples": "rows"}},
        "score": {"use": "evaluate", "arm": "tuned", "sets": ["test", "dev"], "metrics": ["accuracy"],
                  "inputs": {"base": "base", "tuned": "tuned", "examples": "rows"}},
    }}


def tuned_scales(seeds: int, smoke: tuple[str, ...], default: tuple[str, ...] = (), least: int = 1, **large: Any
                 ) -> dict[str, Scale]:
    """The scales, with the arms of `smoke` and `default` (all if empty), and `least` steps in the smallest.

    large: edits of the largest, as `step__field=value`.
    """
    tiny = {"base.model": "pico-encoder", "rows.train": 8, "rows.tests": 4, "tuned.length": {"steps": least},
            "tuned.max_tokens_per_example": 16}
    return {"smoke": Scale(1, {"test": 4, "dev": 2}, tiny, arms=smoke, about="every line, no evidence"),
            "default": Scale(seeds, {"test": TESTS, "dev": TESTS // 2}, arms=default),
            "large": Scale(5, {"test": TESTS, "dev": TESTS // 2}, _paths(large))}


def tried(methods: Methods, ending: str = "", **edits: Any) -> dict[str, dict[str, Any]]:
    """An arm for each rate of each method; with `edits` by `step__field` in all, and `ending` behind the method's name."""
    return {f"{name}{ending}-{rate:g}": {"tuned.method": method, "tuned.learning_rate": rate, **_paths(edits)}
            for name, (method, rates) in methods.items() for rate in rates}


def _paths(edits: Mapping[str, Any]) -> dict[str, Any]:
    return {path.replace("__", "."): value for path, value in edits.items()}


def better(methods: Methods, ending: str = "") -> tuple[Choice, ...]:
    """Each method at the rate that is best on dev."""
    return tuple(Choice(f"{name}{ending}", tuple(f"{name}{ending}-{rate:g}" for rate in rates), DEV)
                 for name, (_, rates) in methods.items())


def learned(*arms: str) -> tuple[Guard, ...]:
    """There is something to learn, and it is learned."""
    return (Guard("the task is learned: at least 0.7 right", TEST, arms, least=0.7),
            Guard("and something is left to be won: at most 0.98 right", TEST, arms, most=0.98))


def more_right(left: str, right: str, says: str, smallest: float = 0.05, **rest: Any) -> Claim:
    """More of the test are right in `right`. Assumed: one text in eleven is told otherwise, trainings differ by 0.01."""
    return Claim(f"{right} above {left}", says, left, right, TEST, "higher", smallest, 0.3, 0.01, **rest)


def fewer_right(left: str, right: str, says: str, smallest: float = 0.05, **rest: Any) -> Claim:
    """The contrary, for what something costs."""
    return Claim(f"{right} below {left}", says, left, right, TEST, "lower", smallest, 0.3, 0.01, **rest)
