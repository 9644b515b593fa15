"""Generation and scoring speed beside the peers: `python benchmarks/generate_speed.py [--json]`.

32 new tokens after prompts of 60 tokens, for 1, 16 and 64 prompts given at once, greedily: ours through
`Engine.generate`, transformers' `generate` in bf16, llama.cpp on the 4-bit file one prompt after the other. Time is
from the token ids of the prompts to the last answer; prompts count, loading does not; each process answers other prompts
of the same length first. The bounds are measured in our own process before and after.

Scoring: log-probabilities of 1,000 continuations of 10 tokens behind one prefix of 500, by `Engine.score`, against the
naive way (prefix and continuation through transformers for every one of them, 16 at a time), of which a part is
measured and the time per continuation compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import measure
import workloads

BATCHES = (1, 16, 64)
SCRIPTS = {"luthier": ("luthier", "luthier_generate.py"), "transformers": ("trl", "transformers_generate.py"),
           "llamacpp": ("llamacpp", "llamacpp_generate.py")}


def main() -> int:
    asked = arguments()
    names = asked.contenders.split(",") if asked.contenders else list(SCRIPTS)
    unknown = sorted(set(names) - set(SCRIPTS))
    if unknown:
        measure.say(f"There is no contender '{unknown[0]}'; legal are {', '.join(SCRIPTS)}.")
        return 2
    base = "pico" if asked.pico else "gemma3-270m"
    folder = measure.HERE / ".work" / f"generate-{base}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    texts = [text for _, text in workloads.paragraphs()]
    made = {"base": base, "texts": texts[:600], "batches": BATCHES, "prompt_tokens": asked.prompt_tokens,
            "new_tokens": asked.new_tokens, "prefix_tokens": 500, "continuations": asked.continuations,
            "naive": asked.naive, "repeats": asked.repeats, "bound_seconds": 0.1 if asked.pico else 2.0}
    (folder / "asked.json").write_text(json.dumps(made), encoding="utf-8")
    measure.contend("luthier", "luthier_generate.py", [folder, "--prepare"], asked.threads)
    found = measure.interleave({n: SCRIPTS[n] for n in names}, asked.rounds,
                               lambda name, where: measure.contend(where[0], where[1], [folder], asked.threads), measure.say)
    result = report(found, asked, base)
    if asked.out is None and not asked.pico and asked.new_tokens == 32:
        asked.out = measure.RESULTS / "generate_speed.json"
    measure.write(result, asked.out, asked.json)
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if any("error" in r for r in result["results"].values()) else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contenders", help=f"comma-separated, of {', '.join(SCRIPTS)}; all if left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="passes over the prompts within a process; the median counts")
    parser.add_argument("--prompt-tokens", type=int, default=60)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--continuations", type=int, default=1000)
    parser.add_argument("--naive", type=int, default=32, help="continuations that are scored the naive way")
    parser.add_argument("--pico", action="store_true", help="a model of random weights: seconds")
    parser.add_argument("--threads", type=int, default=measure.processors())
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, help="file for the result; benchmarks/results/ for whole runs if left out")
    return parser.parse_args()


def report(found: dict[str, list[dict[str, Any]]], asked: argparse.Namespace, base: str) -> dict[str, Any]:
    """Medians over the rounds by contender and batch, with shares of the bounds and ratios to transformers."""
    results = {name: middle(runs) for name, runs in found.items()}
    ours, plain = results.get("luthier", {}), results.get("transformers", {})
    shares: dict[str, Any] = {}
    if "batches" in ours:
        for batch, speed in ours["batches"].items():
            bounds = ours["bounds"][batch]
            shares[batch] = {**{f"share_of_{k}": speed["tokens_per_second"] / v for k, v in bounds.items()}, "bounds": bounds}
            if "batches" in plain:
                other = plain["batches"][batch]
                pairs = list(zip(speed["answers"], other["answers"], strict=True))
                shares[batch] |= {"times_transformers": speed["tokens_per_second"] / other["tokens_per_second"],
                                  "same_answers": sum(a == b for a, b in pairs) / len(pairs)}
    scoring: dict[str, Any] = {}
    if "score" in ours:
        scoring["seconds"] = ours["score"]["seconds"]
        if "score" in plain:
            each = ours["score"]["seconds"] / ours["score"]["continuations"]
            naive = plain["score"]["seconds"] / plain["score"]["continuations"]
            pairs = list(zip(ours["score"]["values"], plain["score"]["values"], strict=False))
            scoring |= {"times_naive": naive / each, "naive_continuations_measured": plain["score"]["continuations"],
                        "largest_difference_nats": max(abs(a - b) for a, b in pairs)}
    for r in results.values():
        for batch in r.get("batches", {}).values():
            batch.pop("answers", None)
        r.get("score", {}).pop("values", None)
    return {"benchmark": "generate_speed", "base": base, "machine": measure.machine(asked.threads), "rounds": asked.rounds,
            "prompt_tokens": asked.prompt_tokens, "new_tokens": asked.new_tokens, "results": results, "shares": shares,
            "scoring": scoring}


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median run of each batch, with the spread."""
    good = [r for r in runs if "error" not in r]
    if not good:
        return {"error": runs[0]["error"]}
    last = good[-1]
    found = {**last, "peak_mb": max(r["peak_mb"] for r in good), "batches": {}}
    for batch in last["batches"]:
        speeds = [r["batches"][batch]["tokens_per_second"] for r in good]
        found["batches"][batch] = {**last["batches"][batch], "tokens_per_second": statistics.median(speeds),
                                   "tokens_per_second_spread": [min(speeds), max(speeds)]}
    for name in ("bounds",) if "bounds" in last else ():
        found[name] = {batch: {k: statistics.median(r[name][batch][k] for r in good) for k in last[name][batch]}
                       for batch in last[name]}
    if "score" in last:
        found["score"] = {**last["score"], "seconds": statistics.median(r["score"]["seconds"] for r in good)}
    return found


if __name__ == "__main__":
    raise SystemExit(main())
