"""Time per token and peak memory from 4,000 to 400,000 tokens: `python benchmarks/scaling.py [--json]`.

One epoch of LoRA on a pico model over more and more short rows of one length distribution, each size in a process of
its own, in rounds (small, …, large, small, …). If the loop's work per token does not depend on how much data there is,
both lines are flat.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from pathlib import Path
from typing import Any

import measure
import workloads

ROWS = (160, 480, 1600, 4800, 16000)  # about 25 tokens a row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="sizes, comma-separated")
    parser.add_argument("--threads", type=int, default=measure.processors())
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, help="file for the result; benchmarks/results/scaling.json if left out")
    asked = parser.parse_args()
    sizes = {rows: workloads.synthetic(int(rows)) for rows in asked.rows.split(",")}
    folder = measure.HERE / ".work" / "scaling"
    shutil.rmtree(folder, ignore_errors=True)
    for rows, workload in sizes.items():
        workloads.place(workload, folder / rows)
    runs = measure.interleave(sizes, asked.rounds, lambda rows, workload: measure.contend(
        "luthier", "luthier_fit.py", ["train", folder / rows, "--warm-up-steps", 8, "--no-bound"], asked.threads), measure.say)
    result = {"benchmark": "scaling", "base": "pico", "machine": measure.machine(asked.threads), "rounds": asked.rounds,
              "sizes": [size(rows, found) for rows, found in runs.items()]}
    result |= flatness(result["sizes"])
    measure.write(result, asked.out or measure.RESULTS / "scaling.json", asked.json)
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if any("error" in s for s in result["sizes"]) else 0


def size(rows: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One size: tokens, microseconds per token, peak."""
    good = [r for r in runs if "error" not in r]
    if not good:
        return {"rows": int(rows), "error": runs[0]["error"]}
    each = [r["seconds"] / r["tokens"] * 1e6 for r in good]
    return {"rows": int(rows), "tokens": good[0]["tokens"], "microseconds_per_token": statistics.median(each),
            "spread": [min(each), max(each)], "peak_mb": max(r["peak_mb"] for r in good),
            "floor_mb": max(r["floor_mb"] for r in good)}


def flatness(sizes: list[dict[str, Any]]) -> dict[str, Any]:
    """The largest size against the smallest, as ratios; and the widest deviation of the time from its median."""
    good = [s for s in sizes if "error" not in s]
    if len(good) < 2:
        return {}
    times = [s["microseconds_per_token"] for s in good]
    return {"time_largest_over_smallest": times[-1] / times[0],
            "time_widest_deviation": max(abs(t / statistics.median(times) - 1) for t in times),
            "peak_largest_over_smallest": good[-1]["peak_mb"] / good[0]["peak_mb"]}


if __name__ == "__main__":
    raise SystemExit(main())
