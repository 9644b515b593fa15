"""Training speed beside the peers, in one sitting: `python benchmarks/train_speed.py [--workload gemma-lora] [--json]`.

Every contender runs in a process of its own, A B C A B C …, so that a machine that speeds up or slows down does so for
all. Reported are the median and the spread over the rounds, each step's loss, the peak memory of the process tree
beside what its imports alone take, and the bound that the matrix products of this machine allow, measured by our own
process right before and after its training.

Time is the training alone: each contender's own account of it, without loading the model and tokenising. Ours is warmed
up on other rows first, since it compiles; `warm_up_seconds` says how long that took, `tokens_per_second_cold` what the
speed is with the warm-up's excess counted in. The peers compile nothing and are not warmed up. Tokens are those of the
workload's rows, padding not counted, the same number for everybody.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import measure
import workloads


@dataclass(frozen=True)
class Contender:
    """A script, the environment it runs in, its extra arguments."""

    environment: str
    script: str
    extra: tuple[str, ...] = ()


CONTENDERS = {
    "luthier": Contender("luthier", "luthier_fit.py"),
    "luthier-full": Contender("luthier", "luthier_fit.py", ("--method", "full")),
    "trl": Contender("trl", "trl_lora.py"),
    "trainer": Contender("trl", "trainer_fit.py"),
    "llamafactory": Contender("llamafactory", "llamafactory_lora.py"),
    "llamafactory-packing": Contender("llamafactory", "llamafactory_lora.py", ("--packing",)),
}
WORK = measure.HERE / ".work"
WARM_UP_STEPS = 16


def main() -> int:
    asked = arguments()
    workload = workloads.WORKLOADS[asked.workload]
    workload = replace(workload, **({"dtype": asked.dtype} if asked.dtype else {}))
    workload = workloads.pico(workload) if asked.pico else workload
    names = asked.contenders.split(",") if asked.contenders else workload.contenders
    unknown = sorted(set(names) - set(CONTENDERS))
    if unknown:
        measure.say(f"There is no contender '{unknown[0]}'; legal are {', '.join(CONTENDERS)}.")
        return 2
    folder = (asked.work or WORK) / f"{workload.name}-{workload.base}-{workload.dtype}"
    shutil.rmtree(folder, ignore_errors=True)
    measure.say(f"{workload.name}: making the workload with {workload.base}")
    made = workloads.make(workload, folder, lambda f: measure.contend(
        "luthier", "luthier_fit.py", ["prepare", f, *(["--steps", asked.steps] if asked.steps else [])], asked.threads))
    measure.say(f"{len(made['order'])} rows, {made['tokens']} tokens, {made['trained_tokens']} of them trained")
    runs = measure.interleave({n: CONTENDERS[n] for n in names}, asked.rounds,
                              lambda name, contender: run(name, contender, folder, made, asked), measure.say)
    result = report(workload, made, runs, asked)
    if asked.out is None and not asked.pico and not asked.steps:
        asked.out = measure.RESULTS / f"train_speed-{workload.name}{'-fp32' if asked.dtype == 'float32' else ''}.json"
    measure.write(result, asked.out, asked.json)
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if any("error" in r for r in result["results"].values()) else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=sorted(workloads.WORKLOADS), default="gemma-lora")
    parser.add_argument("--contenders", help=f"comma-separated, of {', '.join(CONTENDERS)}; the workload's own if left out")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender runs")
    parser.add_argument("--steps", type=int, help="only so many optimizer steps: to see that everything works")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="format of the weights; the workload's if left out")
    parser.add_argument("--pico", action="store_true", help="a model of random weights and few rows: seconds")
    parser.add_argument("--threads", type=int, default=measure.processors())
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, help="file for the result; benchmarks/results/ for whole runs if left out")
    parser.add_argument("--work", type=Path, help="folder for the workload; benchmarks/.work if left out")
    return parser.parse_args()


def run(name: str, contender: Contender, folder: Path, made: dict[str, Any], asked: argparse.Namespace) -> dict[str, Any]:
    """One contender once."""
    steps = ["--steps", asked.steps] if asked.steps else []
    if contender.environment != "luthier":
        return measure.contend(contender.environment, contender.script, [folder, *steps, *contender.extra], asked.threads)
    warm_up = min(asked.steps or WARM_UP_STEPS, WARM_UP_STEPS, len(made["batches"]))
    found = measure.contend("luthier", contender.script, [
        "train", folder, *steps, "--warm-up-steps", warm_up, "--bound-seconds", 0.1 if asked.pico else 3.0,
        *contender.extra], asked.threads)
    # What the first passes cost beyond a pass of a warm process: compiling, and whatever else is done once.
    once = max(0.0, (found["warm_up_training_seconds"] or 0.0) - found["seconds"] * warm_up / max(1, len(found["losses"])))
    return {**found, "tokens_per_second_cold": found["tokens"] / (found["seconds"] + once)}


def report(workload: workloads.Workload, made: dict[str, Any], runs: dict[str, list[dict[str, Any]]],
           asked: argparse.Namespace) -> dict[str, Any]:
    """The result: by contender, with ratios and differences to ours."""
    numbers = ("tokens_per_second", "tokens_per_second_cold", "warm_up_seconds")
    results = {name: measure.summary(found, numbers) for name, found in runs.items()}
    bounds = [r["bound"] for r in runs.get("luthier", []) if "bound" in r]
    ours = results.get("luthier", {})
    middle = {key: sorted(b[key] for b in bounds)[len(bounds) // 2] if bounds else None
              for key in ("tokens_per_second", "square_tokens_per_second")}
    same = workload.task == "generate"  # where the body drops out at random, no step's loss is the same
    others = {n: r for n, r in results.items() if n != "luthier" and "error" not in r and "losses" in ours}
    compared = {n: compare(ours, r, same and not n.startswith("luthier")) for n, r in others.items()}
    best = max((r["tokens_per_second"] for n, r in results.items() if not n.startswith("luthier") and "error" not in r),
               default=None)
    return {"benchmark": "train_speed", "workload": {**workload.__dict__, "tokens": made["tokens"],
                                                      "trained_tokens": made["trained_tokens"]},
            "machine": measure.machine(asked.threads), "rounds": asked.rounds, "steps": asked.steps,
            "results": results,
            "gemm_bound_tokens_per_second": middle["tokens_per_second"],
            "square_bound_tokens_per_second": middle["square_tokens_per_second"],
            "bound_formula": "4 per frozen trunk weight and 6 per trained weight per token, 4 per frozen head weight (6 if "
                             "trained) per trained token; rate over the model's own shapes",
            "share_of_bound": ours["tokens_per_second"] / middle["tokens_per_second"] if bounds and "losses" in ours else None,
            "times_fastest_peer": ours["tokens_per_second"] / best if best and "losses" in ours else None,
            "compared": compared, **({"layers": layers(results)} if "luthier-full" in results else {})}


def compare(ours: dict[str, Any], other: dict[str, Any], same: bool) -> dict[str, Any]:
    """Speed and memory as ratios; the largest difference of a step's loss where the steps are the `same`."""
    steps = list(zip(ours["losses"], other["losses"], strict=False))
    return {"times_as_fast": ours["tokens_per_second"] / other["tokens_per_second"],
            "share_of_its_memory": ours["peak_mb"] / other["peak_mb"],
            "largest_loss_difference": max((abs(a - b) for a, b in steps), default=None)
            if same and len(ours["losses"]) == len(other["losses"]) else None}


def layers(results: dict[str, Any]) -> dict[str, Any]:
    """Epochs of training a part against epochs of training all of it, as times and as work."""
    top, full = results.get("luthier", {}), results.get("luthier-full", {})
    if "error" in top or "error" in full or not top or not full or not top.get("bound"):
        return {}
    whole = sorted(full["epoch_seconds"])[len(full["epoch_seconds"]) // 2]
    later = sorted(top["epoch_seconds"][1:] or [None])[0]
    ratio = top["bound"]["later_epochs_of_full"]
    return {"epoch_seconds": top["epoch_seconds"], "full_epoch_seconds": full["epoch_seconds"],
            "work_first_epoch": top["bound"]["first_epoch_of_full"], "work_later_epochs": ratio,
            "time_later_epochs": later / whole if later else None,
            "time_over_work": later / whole / ratio if later else None}


if __name__ == "__main__":
    raise SystemExit(main())
