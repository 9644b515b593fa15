"""What cutting gradients and cutting the base save: `python benchmarks/savings.py [--steps 120] [--rounds 2] [--json]`.

MiniLM sorts reviews: full tuning against GreenTrainer at half of its work, LoRA against Light-PEFT. Work is what torch's own
counter sees of a whole training (products of matrices and attention, forward and backward, estimation and search included); it
shares nothing with the plans that the methods make. Seconds are of trainings that are not counted, the arms one after the
other in every round: of all steps, and of the later half, when what is cut is cut.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import measure
from torch.utils.flop_counter import FlopCounterMode

from luthier.core.files import read_lines
from luthier.core.recipe import Recipe
from luthier.engine.executor import execute
from luthier.engine.workshop import Engine

ARMS = {"full": "full", "greentrainer": "greentrainer:rho=0.5", "lora": "lora:rank=8,alpha=16",
        "light-peft": "light-peft:estimate_share=0.25"}
AGAINST = {"greentrainer": "full", "light-peft": "lora"}


def recipe(method: str, base: str, steps: int) -> Recipe:
    """Reviews and one training."""
    tuned = {"use": "fit", "tasks": [{"data": "examples.all", "objective": "classify", "head": "linear"}], "method": method,
             "learning_rate": 2e-4, "length": {"steps": steps}, "batch_rows": 16, "over_long": "truncate",
             "max_tokens_per_example": 64, "dtype": "float32", "inputs": {"base": "base", "examples": "reviews"}}
    return Recipe({"name": "savings", "seed": 0, "steps": {
        "base": {"use": "base", "model": base}, "reviews": {"use": "opinions", "rows": 60, "test_rows": 8}, "tuned": tuned}})


def trained(method: str, base: str, steps: int, work: Path) -> tuple[float, float]:
    """Seconds of all steps, and of a step of the later half."""
    run = execute(recipe(method, base, steps), work, Engine())
    at = [row["seconds"] for row in read_lines(run.step("tuned").folder / "curve.jsonl")]
    half = len(at) // 2
    return at[-1], (at[-1] - at[half]) / (len(at) - 1 - half)


def counted(method: str, base: str, steps: int, work: Path) -> int:
    """FLOPs of all of a training."""
    with FlopCounterMode(display=False) as counter:
        execute(recipe(method, base, steps), work, Engine())
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="minilm", help="an encoder; pico-encoder to see that everything runs")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, help="file for the result; benchmarks/results/savings.json if left out")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        times: dict[str, list[tuple[float, float]]] = {
            name: [] for name in ARMS}
        for number in range(asked.rounds):
            for name, method in ARMS.items():
                measure.say(f"round {number + 1}: {name}")
                times[name].append(trained(method, asked.base, asked.steps, place / f"{name}-{number}"))
        flops = {name: counted(method, asked.base, asked.steps, place / f"{name}-counted") for name, method in ARMS.items()}
    arms: dict[str, Any] = {name: {"flops": flops[name], "seconds": round(median(t for t, _ in found), 3),
                                   "later_step_seconds": round(median(s for _, s in found), 5)}
                            for name, found in times.items()}
    result = {"benchmark": "savings", "base": asked.base, "steps": asked.steps, "rounds": asked.rounds,
              "machine": measure.machine(measure.processors()), "arms": arms,
              "shares": {name: {key: round(arms[name][key] / arms[whole][key], 4) for key in arms[name]}
                         for name, whole in AGAINST.items()}}
    measure.write(result, asked.out or measure.RESULTS / "savings.json", asked.json)


if __name__ == "__main__":
    main()
