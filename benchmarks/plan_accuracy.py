"""How near `luthier plan` comes: planned and measured peak memory and time of five trainings, each in a process of its own.

    python benchmarks/plan_accuracy.py            # a table; the Gemma rows need its package and accepted terms
    python benchmarks/plan_accuracy.py --json --only pico-full

A time only means something on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure

WORDS = ("amber birch cedar delta ember fjord grove heron inlet jetty knoll larch mossy north ocean pearl quartz river "
         "stone thorn umbra valley willow zephyr").split()
# name -> base, method, rows, labels, further fields of the fit
WORKLOADS: dict[str, tuple[str, str, int, bool, dict[str, Any]]] = {
    "pico-full": ("pico", "full", 256, False, {"length": {"steps": 60}}),
    "minilm-lora": ("minilm", "lora", 256, True, {"length": {"steps": 12}}),
    "minilm-full": ("minilm", "full", 256, True, {"length": {"steps": 8}}),
    "gemma-lora": ("gemma3-270m", "lora", 48, False, {"length": {"steps": 3}}),
    "gemma-lora-qv": ("gemma3-270m", "lora:target=attention-qv", 48, False, {"length": {"steps": 3}}),
}


def rows(count: int, labels: bool) -> list[dict[str, str]]:
    """Rows of 40 to 120 words with labels, or questions with answers."""
    found = []
    for i in range(count):
        words = [WORDS[(i * j + j) % len(WORDS)] for j in range(1, 41 + 7 * i % 80)]
        if labels:
            found.append({"text": " ".join(words), "label": "even" if i % 2 else "odd"})
        else:
            found.append({"question": f"What stands on plot {i}, {' '.join(words[:20])}?", "answer": " ".join(words[:30])})
    return found


def one(name: str) -> dict[str, Any]:
    """Plan, then train, in this process."""
    import time

    import luthier.engine.generation
    import luthier.engine.loop  # noqa: F401
    from luthier.core.artifact import write_examples
    from luthier.core.example import Example, Part, Turn, question
    from luthier.core.files import Journal, read_json
    from luthier.core.rng import Rng
    from luthier.core.step import Ctx
    from luthier.engine.hardware import rates
    from luthier.engine.step_plans import plan_fit, resident_mb
    from luthier.engine.steps.base import Base
    from luthier.engine.steps.fit import Fit
    from luthier.engine.workshop import Engine

    base, method, count, labels, fields = WORKLOADS[name]
    engine = Engine(threads=int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    engine.decide({})
    root = Path(tempfile.mkdtemp())

    def ctx(folder: str, inputs: dict[str, Any]) -> Ctx:
        (root / folder).mkdir()
        return Ctx(Rng(0).within("tuned"), root / folder, Journal(root / folder / "journal.jsonl"), engine,
                   stream=lambda n: inputs[n.partition(".")[0]].examples(n.partition(".")[2]))

    made = []
    for i, row in enumerate(rows(count, labels)):
        if labels:
            made.append(Example(str(i), (Turn("user", (Part(row["text"]),)),), label=row["label"], task="classify"))
        else:
            made.append(question(str(i), row["question"], row["answer"]))
    (root / "data" / "licenses").mkdir(parents=True)
    inputs: dict[str, Any] = {"examples": write_examples(root / "data", {"train": made})}
    inputs["base"] = Base(model=base).run({}, ctx("base", {}))
    tasks = [{"data": "examples.train", "objective": "classify", "head": "linear"}] if labels else [{"data": "examples.train"}]
    fit = Fit(method=method, tasks=tasks, over_long="truncate" if labels else "drop",
              max_tokens_per_example=128 if labels else 512, batch_rows=16 if labels else 8, **fields)
    here = rates(engine.decisions["threads"])
    began = time.monotonic()
    planned = plan_fit(fit, inputs, ctx("plan", inputs), here)
    took = time.monotonic() - began
    floor = resident_mb()
    fit.run(inputs, ctx("fit", inputs))
    cost = read_json(root / "fit" / "cost.json")
    return {"workload": name, "planned_mb": round(floor + planned.peak_mb, 1), "measured_mb": round(cost["peak_mb"], 1),
            "floor_mb": round(floor, 1), "planned_seconds": round(planned.seconds, 2),
            "measured_seconds": round(cost["seconds"], 2), "plan_took_seconds": round(took, 2),
            "parts_mb": {k: round(v, 1) for k, v in planned.memory.items()}, "dtype": planned.dtype,
            "facts": planned.facts, "threads": engine.decisions["threads"], "processor": here.processor, "rates_of": here.date}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", action="append", choices=list(WORKLOADS), help="this workload; repeatable")
    parser.add_argument("--out", type=Path, help="file for the result; benchmarks/results/plan_accuracy.json if left out")
    parser.add_argument("--one", choices=list(WORKLOADS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one)))
        return
    results = []
    for name in given.only or WORKLOADS:
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        results.append(json.loads(done.stdout.splitlines()[-1]))
    for r in results:
        r["memory_ratio"] = round(r["planned_mb"] / r["measured_mb"], 3)
        r["time_ratio"] = round(r["planned_seconds"] / max(r["measured_seconds"], 1e-9), 3)
    measure.write({"benchmark": "plan_accuracy", "machine": measure.machine(measure.processors()), "workloads": results},
                  given.out or measure.RESULTS / "plan_accuracy.json", given.json)
    if given.json:
        return
    print(f"{'workload':<16}{'planned MB':>12}{'measured MB':>12}{'ratio':>8}{'planned s':>11}{'measured s':>11}{'ratio':>8}")
    for r in results:
        print(f"{r['workload']:<16}{r['planned_mb']:>12,.0f}{r['measured_mb']:>12,.0f}{r['memory_ratio']:>8.2f}"
              f"{r['planned_seconds']:>11.2f}{r['measured_seconds']:>11.2f}{r['time_ratio']:>8.2f}")


if __name__ == "__main__":
    main()
