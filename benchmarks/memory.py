"""Peak memory against the number of rows, beside the peers: `python benchmarks/memory.py [--json]`.

Every contender makes the same few optimizer steps with a pico model, on more and more rows: what grows is what it keeps
of the data. The peak is that of its process tree from its start to the end of training; what its imports alone take
stands beside it. The peaks of the real models are in the results of `train_speed.py`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import measure
import workloads

ROWS = (1000, 4000, 16000)
STEPS = 16
SCRIPTS = {"luthier": ("luthier", "luthier_fit.py"), "trainer": ("trl", "trainer_fit.py"), "trl": ("trl", "trl_lora.py"),
           "llamafactory": ("llamafactory", "llamafactory_lora.py")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contenders", default=",".join(SCRIPTS), help="comma-separated")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="sizes, comma-separated")
    parser.add_argument("--threads", type=int, default=measure.processors())
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, help="file for the result; benchmarks/results/memory.json if left out")
    asked = parser.parse_args()
    names = asked.contenders.split(",")
    unknown = sorted(set(names) - set(SCRIPTS))
    if unknown:
        parser.error(f"there is no contender '{unknown[0]}'; legal are {', '.join(SCRIPTS)}")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for rows in map(int, asked.rows.split(",")):
        folder = measure.HERE / ".work" / f"memory-{rows}"
        shutil.rmtree(folder, ignore_errors=True)
        workloads.make(workloads.synthetic(rows), folder, lambda f: measure.contend(
            "luthier", "luthier_fit.py", ["prepare", f, "--file-order"], asked.threads))
        given = {"luthier": ["train", folder, "--no-bound"]}
        runs = measure.interleave({n: SCRIPTS[n] for n in names}, 1, lambda name, where, given=given, f=folder: measure.contend(
            *where, [*given.get(name, [f]), "--steps", STEPS], asked.threads), measure.say)
        for name, (run,) in runs.items():
            kept = ("error",) if "error" in run else ("peak_mb", "floor_mb")
            found[name].append({"rows": rows, **{k: run[k] for k in kept}})
        shutil.rmtree(folder, ignore_errors=True)
    result = {"benchmark": "memory", "base": "pico", "steps": STEPS, "machine": measure.machine(asked.threads),
              "results": found, "kilobytes_per_row": {name: growth(points) for name, points in found.items()}}
    measure.write(result, asked.out or measure.RESULTS / "memory.json", asked.json)
    return 1 if any("error" in p for points in found.values() for p in points) else 0


def growth(points: list[dict[str, Any]]) -> float | None:
    """Kilobytes of peak that each further row costs, between the smallest and the largest size."""
    good = [p for p in points if "error" not in p]
    if len(good) < 2:
        return None
    return (good[-1]["peak_mb"] - good[0]["peak_mb"]) * 1000 / (good[-1]["rows"] - good[0]["rows"])


if __name__ == "__main__":
    raise SystemExit(main())
