"""Seconds and memory of the fused loss and of torch's own on [512, 640] hidden states and a [262144, 640] head in bf16.

    python benchmarks/fused_loss.py [--json] [--repeats 3]

Each arm runs in a process of its own (memory is its peak above what it held before), the arms take turns, and the
median is shown. The bound is the time of the arm's two matrix products (4 x 512 x 640 x 262144 operations) at the rate
measured in the same process for one such product. The head is frozen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

ROWS, WIDTH, SIZE = 512, 640, 262144
ARMS = ("eager", "compiled", "torch")


def measure(arm: str) -> dict[str, float]:
    """One arm in this process: seconds, megabytes above the start, share of the bound."""
    import torch

    from luthier.engine import fused
    from luthier.engine.memory import peak_mb

    make = torch.Generator().manual_seed(0)
    weight = torch.randn(SIZE, WIDTH, generator=make, dtype=torch.bfloat16).mul_(0.05)
    hidden = torch.randn(ROWS, WIDTH, generator=make, dtype=torch.bfloat16).requires_grad_()
    target = torch.randint(0, SIZE, (ROWS,), generator=make)
    fused.use(fused.Settings(ROWS, compiled=arm == "compiled"))

    def step() -> None:
        if arm == "torch":
            loss = torch.nn.functional.cross_entropy((hidden @ weight.T).float(), target, reduction="sum")
        else:
            loss = fused.nll(hidden, fused.Head(weight), target).sum()
        loss.backward()

    scores = torch.empty(ROWS, SIZE // 16, dtype=torch.bfloat16)
    product = _seconds(lambda: torch.mm(hidden.detach(), weight[:SIZE // 16].T, out=scores)) * 16
    before = peak_mb()
    step()
    seconds = _seconds(step)
    return {"seconds": seconds, "mb": peak_mb() - before, "share_of_bound": 2 * product / seconds}


def _seconds(function, repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm", choices=ARMS, help="measure one arm in this process")
    given = parser.parse_args()
    if given.arm:
        print(json.dumps(measure(given.arm)))
        return
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for _ in range(given.repeats):
        for arm in ARMS:
            done = subprocess.run([sys.executable, __file__, "--arm", arm], capture_output=True, text=True, check=True)
            found[arm].append(json.loads(done.stdout.splitlines()[-1]))
    results = {arm: {k: round(statistics.median(r[k] for r in rows), 3) for k in rows[0]} for arm, rows in found.items()}
    if given.json:
        print(json.dumps({"results": results}))
        return
    for arm, row in results.items():
        print(f"{arm:9} {row['seconds']:7.3f} s  {row['mb']:7.0f} MB  {row['share_of_bound']:.2f} of the bound")


if __name__ == "__main__":
    main()
