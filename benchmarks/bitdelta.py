"""What a full tune of Gemma 3 270M keeps in one bit a weight: `python benchmarks/bitdelta.py [--steps 24] [--json]`.

Gemma reads docstrings of one part of Python's library with every weight but the embeddings, and its change is packed by
`bitdelta`, with plain scales and with scales distilled on the texts it read. Compared are bits per byte of docstrings of other
modules, and the bytes of the packed matrices with those of the same matrices in bfloat16. Weights are float32: in bfloat16 so
short a tune leaves many where they were, and a sign moves them all. No time is measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import measure

from luthier.core.files import read_lines
from luthier.core.recipe import Recipe
from luthier.engine.executor import execute
from luthier.engine.workshop import Engine

KEPT: dict[str, dict[str, Any]] = {
    "bit": {"rule": "bitdelta"},
    "distilled": {"rule": "bitdelta:steps=40,rows=2,tokens=64", "files": {"distill": "train"}}}


def recipe(steps: int) -> Recipe:
    """Base, tune, both packings, and what each makes of further texts."""
    tuned = {"use": "fit", "tasks": [{"data": "examples.train", "objective": "pretrain"}], "method": "full:freeze_bottom=0",
             "dtype": "float32", "learning_rate": 1e-4, "length": {"steps": steps}, "batch_rows": 4,
             "max_tokens_per_example": 256, "over_long": "drop", "inputs": {"base": "base", "examples": "docs"}}
    text: dict[str, Any] = {"docs": {"use": "docstrings"}, "base": {"use": "base", "model": "gemma3-270m"}, "tuned": tuned}
    for name, how in KEPT.items():
        read = {"examples": "docs"} if "files" in how else {}
        text[name] = {"use": "merge", **how, "inputs": {"base": "base", "tuned": "tuned", **read}}
    for name in ("", "tuned", *KEPT):
        text[f"score-{name or 'base'}"] = {
            "use": "evaluate", "arm": name or "base", "sets": ["target"], "metrics": ["bits-per-byte"],
            "inputs": {"base": "base", "examples": "docs", **({"tuned": name} if name else {})}}
    return Recipe({"name": "bitdelta-gemma", "seed": 0, "steps": text})


def sizes(folder: Path) -> tuple[int, int, int]:
    """Bytes of the packed matrices, of the same in bfloat16, and of the whole delta."""
    import safetensors

    packed = plain = 0
    with safetensors.safe_open(folder / "delta.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - a file is no dictionary
            if name.endswith(":bits"):
                bits = file.get_slice(name).get_shape()
                packed += bits[0] * bits[1] + 4 * bits[0]
                plain += 2 * 8 * bits[1]
    return packed, plain, (folder / "delta.safetensors").stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--work", type=Path, default=Path("runs/bitdelta-gemma"), help="the run; it goes on where it stopped")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, help="file for the result; benchmarks/results/bitdelta-gemma.json if left out")
    asked = parser.parse_args()
    run = execute(recipe(asked.steps), asked.work, Engine())
    found: dict[str, float] = {}
    for name in ("base", "tuned", *KEPT):
        rows = [r for r in read_lines(run.step(f"score-{name}").folder / "scores.jsonl") if r["metric"] == "bits-per-byte"]
        found[name] = sum(r["value"] for r in rows) / len(rows)
    packed, plain, whole = sizes(run.step("distilled").folder)
    result = {"benchmark": "bitdelta-gemma", "steps": asked.steps, "machine": measure.machine(measure.processors()),
              "bits_per_byte": {n: round(v, 5) for n, v in found.items()}, "packed_bytes": packed, "bfloat16_bytes": plain,
              "times_smaller": round(plain / packed, 2), "delta_file_bytes": whole,
              "above_tuned": {n: round(found[n] / found["tuned"] - 1, 5) for n in KEPT}}
    measure.write(result, asked.out or measure.RESULTS / "bitdelta-gemma.json", asked.json)


if __name__ == "__main__":
    main()
