"""Record what mergekit makes of small tensors: the oracle of the rules that it has too.

    python -m venv mergekit && mergekit/bin/pip install mergekit && mergekit/bin/python scripts/make_merge_fixture.py

writes tests/fixtures/merges_mergekit.json: for each case a rule of this house, its models and mergekit's result in float32.
The inputs come from a formula, so that the fixture holds results only.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import torch
from mergekit.merge_methods.api import merge_state_dicts

TARGET = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "merges_mergekit.json"
SHAPES = {"matrix": [6, 5], "vector": [7], "cube": [2, 3, 4]}
# The base is 0.4 sin(0.37 i + k), k the number of the tensor; model m changes it by `size` sin(`step`_m i + 1.3 k + 0.4 m).
FORMULA = {"scale": 0.4, "frequency": 0.37, "size": 0.1, "steps": [0.91, 1.02, 0.85], "opposed": [0.91, 2.3],
           "near": [0.91, 0.93, 0.95]}
# name, rule of ours, mergekit's method and parameters, steps of the changes
CASES = [
    ("linear", "linear:weights=[1,3]", "linear", {"weight": [1.0, 3.0]}, "steps", 2),
    ("linear, three", "linear:weights=[0.5,0.2,-0.1],normalize=false", "linear",
     {"weight": [0.5, 0.2, -0.1], "normalize": False}, "steps", 3),
    ("slerp", "slerp:t=0.3", "slerp", {"t": 0.3}, "steps", 2),
    ("task arithmetic", "task-arithmetic:weights=[0.6,-0.3],scale=0.5", "task_arithmetic",
     {"weight": [0.6, -0.3], "lambda": 0.5}, "opposed", 2),
    ("task arithmetic, normalised", "task-arithmetic:weights=[0.6,0.3],normalize=true", "task_arithmetic",
     {"weight": [0.6, 0.3], "normalize": True}, "opposed", 2),
    ("ties", "ties:density=[0.4]", "ties", {"weight": 1.0, "density": 0.4}, "opposed", 2),
    ("ties, three", "ties:density=[0.5,0.3,0.7],weights=[1,0.5,2],scale=0.8", "ties",
     {"weight": [1.0, 0.5, 2.0], "density": [0.5, 0.3, 0.7], "lambda": 0.8}, "steps", 3),
    ("ties, a sum", "ties:density=[0.4],normalize=false", "ties", {"weight": 1.0, "density": 0.4, "normalize": False},
     "opposed", 2),
    ("model stock", "model-stock", "model_stock", {}, "near", 2),
    ("model stock, three", "model-stock", "model_stock", {}, "near", 3),
]
WITH_BASE = {"task_arithmetic", "ties", "model_stock"}


def inputs(steps: list[float]) -> list[dict[str, torch.Tensor]]:
    """The base and a model for each step."""
    made = []
    for m, step in enumerate([None, *steps]):
        tensors = {}
        for k, (name, shape) in enumerate(SHAPES.items()):
            at = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
            value = FORMULA["scale"] * torch.sin(FORMULA["frequency"] * at + k)
            if step is not None:
                value = value + FORMULA["size"] * torch.sin(step * at + 1.3 * k + 0.4 * (m - 1))
            tensors[name] = value.float()
        made.append(tensors)
    return made


def record(title: str, rule: str, method: str, parameters: dict, steps: str, models: int) -> dict:
    """mergekit's result of one case."""
    base, *tuned = inputs(FORMULA[steps][:models])
    given = {f"m{i}": t for i, t in enumerate(tuned)}
    if method in WITH_BASE:
        given = {"base": base, **given}
    names = [n for n in given if n != "base"]
    values = {k: dict(zip(names, v, strict=True)) if isinstance(v, list) else v for k, v in parameters.items()}
    first = "base" if method in WITH_BASE else "m0" if method == "slerp" else None
    found = merge_state_dicts(given, method, parameters=values, base=first)
    return {"title": title, "rule": rule, "steps": FORMULA[steps][:models], "base": method in WITH_BASE,
            "result": {name: tensor.flatten().tolist() for name, tensor in found.items()}}


if __name__ == "__main__":
    with torch.no_grad():
        rows = [record(*case) for case in CASES]
    TARGET.write_text(json.dumps({"made_by": "scripts/make_merge_fixture.py", "versions": {
        "mergekit": version("mergekit"), "torch": torch.__version__}, "shapes": SHAPES, "formula": FORMULA,
        "records": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} cases")
