"""Writes RESULTS.md and the plots from the JSON files of the benchmarks: `python benchmarks/results.py`.

Every number in it is read from a file in `results/`; a benchmark without a file is named as not measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import measure

TITLES = {
    "train_speed-gemma-lora": "LoRA on Gemma 3 270M, bf16",
    "train_speed-gemma-lora-fp32": "LoRA on Gemma 3 270M, fp32",
    "train_speed-gemma-full": "Full fine-tuning of Gemma 3 270M",
    "train_speed-minilm-classify": "Classifier on MiniLM, 2,000 reviews",
    "train_speed-gemma-top-layers": "Top quarter of the layers, Gemma 3 270M",
    "train_speed-minilm-top-layers": "Top quarter of the layers, MiniLM",
    "train_speed-minilm-bitfit": "BitFit, MiniLM",
    "train_speed-minilm-layernorm": "Layer norms, MiniLM",
    "train_speed-gemma-layernorm": "Layer norms, Gemma 3 270M",
}
NAMES = {"luthier": "Luthier", "luthier-full": "Luthier, all layers", "trl": "TRL SFTTrainer",
         "trainer": "PEFT/transformers Trainer", "llamafactory": "LLaMA-Factory",
         "llamafactory-packing": "LLaMA-Factory, neat_packing",
         "transformers": "transformers generate", "llamacpp": "llama.cpp, 4-bit"}
SEARCHES = {"vector": "by vector", "exact": "by vector, exactly", "fused": "fused with full text",
            "fused_embedded": "fused, query embedded"}
NOT_MEASURED = "Not measured yet: `{}`."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=measure.RESULTS)
    parser.add_argument("--out", type=Path, default=measure.HERE / "RESULTS.md")
    parser.add_argument("--no-plots", action="store_true", help="only the text, for an environment without matplotlib")
    asked = parser.parse_args()
    found = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(asked.results.glob("*.json"))}
    asked.out.write_text(page(found) + "\n", encoding="utf-8")
    if not asked.no_plots:
        import plots

        plots.draw(found, asked.out.parent / "plots", TITLES, NAMES)
    print(f"{asked.out} from {len(found)} results")
    return 0


def page(found: dict[str, Any]) -> str:
    """The whole text."""
    parts = ["# Benchmark results", _ABOUT]
    for key, title in TITLES.items():
        parts += [f"## {title}"]
        missing = [NOT_MEASURED.format(f"train_speed.py --workload {_flags(key)}")]
        parts += training(key, found[key]) if key in found else missing
    parts += ["## Generation and scoring"]
    parts += generation(found["generate_speed"]) if "generate_speed" in found else [NOT_MEASURED.format("generate_speed.py")]
    parts += ["## Serving"]
    parts += serving(found["serve_speed"]) if "serve_speed" in found else [NOT_MEASURED.format("serve_speed.py --gemma")]
    loads = [found[key] for key in found if key.startswith("serve_load")]
    parts += under_load(loads) if loads else [NOT_MEASURED.format("serve_load.py")]
    parts += ["## Search by the number of passages"]
    parts += search(found["search_speed"]) if "search_speed" in found else [NOT_MEASURED.format("search_speed.py")]
    parts += ["## Ingestion and embedding"]
    parts += ingestion(found["ingest_speed"]) if "ingest_speed" in found else [NOT_MEASURED.format("ingest_speed.py")]
    parts += embedding(found["embed_speed"]) if "embed_speed" in found else [NOT_MEASURED.format("ingest_speed.py --embedding")]
    parts += ["## Growth with the data"]
    parts += scaling(found["scaling"]) if "scaling" in found else [NOT_MEASURED.format("scaling.py")]
    parts += memory(found["memory"]) if "memory" in found else [NOT_MEASURED.format("memory.py")]
    parts += ["## The plan against what happened"]
    parts += plans(found["plan_accuracy"]) if "plan_accuracy" in found else [NOT_MEASURED.format("plan_accuracy.py")]
    parts += ["## A full tune in one bit a weight"]
    parts += packed(found["bitdelta-gemma"]) if "bitdelta-gemma" in found else [NOT_MEASURED.format("bitdelta.py")]
    parts += ["## What cutting gradients and cutting the base save"]
    parts += saved(found["savings"]) if "savings" in found else [NOT_MEASURED.format("savings.py")]
    return "\n\n".join(parts)


_ABOUT = """Written by `benchmarks/results.py` from the files in `benchmarks/results/`; every table says when and where
it was measured. All contenders of a table ran in turn in one sitting, so its ratios mean more than its absolute numbers: the
machine may be shared. Speeds are medians, with the least and the most in brackets. Memory is the peak of the process tree,
pages that processes share counted in each; the floor is what the imports alone take."""


def training(key: str, result: dict[str, Any]) -> list[str]:
    """One workload: the table, the bound, what was compared."""
    workload = result["workload"]
    rows = []
    for name, r in result["results"].items():
        if "error" in r:
            rows.append([NAMES[name], "failed", *[""] * 5])
            continue
        against = result["compared"].get(name, {})
        rows.append([NAMES[name], spread(r, "tokens_per_second"), ratio(against.get("times_as_fast")),
                     whole(r["peak_mb"]), whole(r["floor_mb"]), ratio(against.get("share_of_its_memory")),
                     small(against.get("largest_loss_difference"))])
    head = ["", "tokens/s", "Luthier is … times as fast", "peak MB", "of it imports", "Luthier's share of the peak",
            "largest difference of a step's loss"]
    ours = result["results"].get("luthier", {})
    text = [where(result), f"{workload['rows']:,} rows, {workload['tokens']:,} tokens, {workload['trained_tokens']:,} of them "
            f"trained; batch {workload['batch_rows']}, {workload['epochs']} epoch(s), {workload['dtype']}.", table(head, rows)]
    if ours.get("tokens_per_second_cold"):
        text.append(f"Luthier was warmed up on other rows; with everything that is done once in a process counted in, it "
                    f"reaches {whole(ours['tokens_per_second_cold'])} tokens/s on this small workload.")
    if result["share_of_bound"]:
        reach = ours["bound"]
        text.append(f"The matrix products of this model run at {_two(reach['gemm_gflops'])} GFLOP/s here (before and after "
                    f"the last run; one square of 2,048: {_two(reach['square_gflops'])}). That bounds training at "
                    f"{whole(result['gemm_bound_tokens_per_second'])} tokens/s ({result['bound_formula']}). Luthier reaches "
                    f"{result['share_of_bound']:.2f} of the bound.")
    if result["times_fastest_peer"]:
        text.append(f"Luthier is {result['times_fastest_peer']:.2f} times as fast as the fastest peer of this table.")
    if result.get("layers"):
        text.append(_layers(result["layers"]))
    if "losses" in ours:
        text.append(f"![loss and speed](plots/{key}.png)")
    errors = [f"{NAMES[n]} failed: {r['error'].splitlines()[0]}" for n, r in result["results"].items() if "error" in r]
    return text + errors


def _layers(found: dict[str, Any]) -> str:
    seconds = ", ".join(f"{s:.2f}" for s in found["epoch_seconds"])
    later = ("" if found["time_later_epochs"] is None else
             f" Later epochs take {found['time_later_epochs']:.2f} of a full epoch's time for "
             f"{found['work_later_epochs']:.2f} of its work: {found['time_over_work']:.2f} times the ratio of the work.")
    whole_epochs = ", ".join(f"{s:.2f}" for s in found["full_epoch_seconds"])
    return (f"Seconds per epoch: {seconds}; with all layers trained: {whole_epochs}. The "
            f"first epoch is {found['work_first_epoch']:.2f} of a full epoch's work.{later}")


def generation(result: dict[str, Any]) -> list[str]:
    """Tokens per second by batch, shares of the bounds, scoring."""
    batches = list(next((r["batches"] for r in result["results"].values() if "batches" in r), {}))
    rows = []
    for name, r in result["results"].items():
        speeds = [spread(r["batches"][b], "tokens_per_second") if b in r.get("batches", {}) else "" for b in batches]
        rows.append([NAMES[name], *(speeds if "error" not in r else ["failed"] * len(batches)), whole(r.get("peak_mb"))])
    text = [where(result), f"{result['new_tokens']} new tokens after prompts of {result['prompt_tokens']} tokens, greedily.",
            table(["", *(f"tokens/s, {b} at once" for b in batches), "peak MB"], rows)]
    if result["shares"]:
        named = {"share_of_bandwidth": "share of the bandwidth bound", "share_of_gemm": "share of the product bound",
                 "share_of_either": "share of the lower of both",
                 "share_of_with_prompts": "the same, reading the prompts counted",
                 "times_transformers": "times transformers generate", "same_answers": "share of answers equal to transformers'"}
        text.append(table(["", *(f"{b} at once" for b in result["shares"])],
                          [[title, *(ratio(s.get(key)) for s in result["shares"].values())] for key, title in named.items()]))
    scoring = result["scoring"]
    if "times_naive" in scoring:
        text.append(f"1,000 continuations behind one prefix of 500 tokens: {scoring['seconds']:.1f} s; per continuation "
                    f"{scoring['times_naive']:.1f} times as fast as the naive way (measured on "
                    f"{scoring['naive_continuations_measured']} of them). Largest difference of a log-probability: "
                    f"{scoring['largest_difference_nats']:.3f} nats.")
    return text


def serving(result: dict[str, Any]) -> list[str]:
    """What the server takes beside the engine."""
    speeds, used, first = result["tokens_per_second"], result["tokens_per_processor_second"], result["first_token_seconds"]
    names = {"engine": "the engine, 16 prompts at once", "many": "the server, 16 clients", "one": "the server, 1 client"}
    rows = [[title, f"{speeds[n]:.1f}", f"{used[n]:.1f}"] for n, title in names.items()]
    return [where(result), f"{result['base']}, {result['new_tokens']} new tokens, streamed; medians of {result['rounds']} "
            "rounds in which the three took turns.",
            table(["", "tokens/s", "tokens per second of the processor"], rows),
            f"16 clients get {result['many_of_engine']:.2f} of the engine's own speed by the clock "
            f"({result['many_of_engine_processor']:.2f} by processor time) and {result['many_of_one']:.1f} times "
            f"one client's ({result['many_of_one_processor']:.1f}). The HTTP layer takes {100 * result['http_share']:.1f} % of "
            f"the processor time of generation. {first['clients']} clients with prompts of {first['prompt_tokens']} tokens "
            f"hear the first token after {first['p50']:.2f} s, the last after {first['most']:.2f} s. A second adapter takes "
            f"{result['second_adapter_mb']:.1f} MB."]


def under_load(results: list[dict[str, Any]]) -> list[str]:
    """How servers held under load."""
    counted = ("own", "changed", "mixed", "failed", "refused")
    rows = [[r["base"], f"{r['clients']}", f"{r['seconds']:.0f}", f"{r['requests']:,}", f"{r['tokens_per_second']:.0f}",
             f"{r['first_50_seconds']:.2f} ({r['first_95_seconds']:.2f})", *(f"{r[c]:,}" for c in counted),
             f"{r['middle_mb']:,.0f}, {r['last_mb']:,.0f}" if "middle_mb" in r else ""] for r in results]
    head = ["", "clients", "seconds", "answers", "tokens/s", "first token, s (95 %)", *counted, "MB, middle and last third"]
    return [where(results[0]), "Every answer is told to be its client's own by what it carries, or by what the client was "
            "answered alone.", table(head, rows)]


def search(result: dict[str, Any]) -> list[str]:
    """Milliseconds, recall, memory and disk by size."""
    rows = [[f"{s['passages']:,}", s["build"]["vectors"]["index"], *(milliseconds(s[way]) for way in SEARCHES),
             f"{s['recall_at_10']:.3f}", whole(s["searching_mb"]), whole(s["floor_mb"]), whole(s["disk_mb"]),
             f"{s['build']['seconds']:.0f} s, {whole(s['build']['peak_mb'])} MB", f"{s['load']:.0f}"] for s in result["sizes"]]
    head = ["passages", "index", *SEARCHES.values(), "recall@10", "peak MB, searching", "of it torch and MiniLM", "disk MB",
            "making the index", "load"]
    return [where(result), "Milliseconds of single queries by the clock: median (95th percentile), and the median of their "
            "processor time, which a loaded machine changes less. Vectors are generated, around one centre for a hundred "
            "passages; load is the number of processes that wanted a processor.", table(head, rows),
            "![search](plots/search_speed.png)"]


def ingestion(result: dict[str, Any]) -> list[str]:
    """Seconds and memory by kind of file."""
    rows = [[name, f"{r['files']:,}", f"{r['megabytes']:.0f}", f"{r['seconds']:.1f}", whole(r["peak_mb"]), f"{r['passages']:,}"]
            for name, r in result["results"].items()]
    return [where({"machine": result["machine"]}), table(["", "files", "MB", "seconds", "peak MB", "passages"], rows)]


def embedding(result: dict[str, Any]) -> list[str]:
    """The share of the bound."""
    least, most = result["share_of_bound_spread"]
    speed, rate, share = whole(result["tokens_per_second"]), whole(result["gemm_gflops"]), result["share_of_bound"]
    return [where(result), f"MiniLM, {result['dtype']}, one thread: {speed} tokens per second of the processor; the products "
            f"of its layers run at {rate} GFLOP/s in the same process. Embedding reaches {share:.2f} ({least:.2f}–{most:.2f}) "
            f"of that bound, tokenising included; load {result['load']:.0f}."]


def scaling(result: dict[str, Any]) -> list[str]:
    """Time per token and peak by size."""
    rows = [[f"{s['rows']:,}", f"{s['tokens']:,}",
             f"{s['microseconds_per_token']:.1f} ({s['spread'][0]:.1f}–{s['spread'][1]:.1f})", whole(s["peak_mb"])]
            for s in result["sizes"] if "error" not in s]
    text = [where(result), table(["rows", "tokens", "µs per token", "peak MB"], rows)]
    if "time_largest_over_smallest" in result:
        text.append(f"Largest over smallest: time per token {result['time_largest_over_smallest']:.2f}, peak memory "
                    f"{result['peak_largest_over_smallest']:.2f}. Widest deviation of the time per token from its median: "
                    f"{result['time_widest_deviation']:.0%}.")
    return [*text, "![scaling](plots/scaling.png)"]


def memory(result: dict[str, Any]) -> list[str]:
    """Peak by rows and contender."""
    sizes = [p["rows"] for p in next(iter(result["results"].values()))]
    rows = [[NAMES[name], *(whole(p.get("peak_mb")) for p in points), whole(points[-1].get("floor_mb")),
             "" if result["kilobytes_per_row"][name] is None else f"{result['kilobytes_per_row'][name]:.2f}"]
            for name, points in result["results"].items()]
    return [where(result), f"{result['steps']} steps of a pico model on more and more rows.",
            table(["peak MB", *(f"{s:,} rows" for s in sizes), "of it imports", "kB per further row"], rows),
            "![memory](plots/memory.png)"]


def plans(result: dict[str, Any]) -> list[str]:
    """Planned and measured memory and time of every workload."""
    rows = [[w["workload"], w["dtype"], whole(w["planned_mb"]), whole(w["measured_mb"]), ratio(w["memory_ratio"]),
             f"{w['planned_seconds']:.1f}", f"{w['measured_seconds']:.1f}", ratio(w["time_ratio"])]
            for w in result["workloads"]]
    return [where(result), table(["training", "format", "planned MB", "measured MB", "planned / measured", "planned s",
                                  "measured s", "planned / measured"], rows)]


def packed(result: dict[str, Any]) -> list[str]:
    """Bits per byte of the base, the tune and its packings, and how much smaller those are."""
    rows = [[name, f"{value:.4f}", f"{100 * result['above_tuned'][name]:+.2f} %" if name in result["above_tuned"] else "–"]
            for name, value in result["bits_per_byte"].items()]
    return [where(result), table(["Gemma 3 270M", "bits per byte of texts kept out", "against the tune"], rows),
            f"The matrices of its layers take {result['packed_bytes'] / 1e6:.1f} MB as signs and scales and "
            f"{result['bfloat16_bytes'] / 1e6:.1f} MB in bfloat16: {result['times_smaller']:.1f} times less."]


def saved(result: dict[str, Any]) -> list[str]:
    """Work and time of each method as shares of what it is a cut of."""
    rows = [[name, f"{arm['flops'] / 1e12:.2f}", f"{arm['seconds']:.1f}", f"{1e3 * arm['later_step_seconds']:.0f}",
             *(f"{result['shares'][name][key]:.2f}" if name in result["shares"] else ""
               for key in ("flops", "seconds", "later_step_seconds"))] for name, arm in result["arms"].items()]
    head = ["", "TFLOP", "seconds", "ms a step, later half", "share of the FLOPs", "of the seconds", "of a later step"]
    return [where(result), f"{result['base']}, {result['steps']} steps of 16 reviews; GreenTrainer against full tuning, "
            "Light-PEFT against LoRA; FLOPs by torch's counter, search and estimation included.", table(head, rows)]


# --- text --------------------------------------------------------------------------------------------------------


def where(result: dict[str, Any]) -> str:
    """Date, processor, threads and versions in a line."""
    machine = result["machine"]
    names: dict[str, str] = dict(machine["versions"])
    peers = [f"{NAMES[n]}: " + ", ".join(f"{k} {v}" for k, v in r["versions"].items()) for n, r in result["results"].items()
             if isinstance(r, dict) and "versions" in r and not n.startswith("luthier")] if "results" in result else []
    own = ", ".join(f"{k} {v}" for k, v in names.items())
    return (f"Measured {machine['date']} on {machine['processor']}, {machine['threads']} thread(s), {machine['memory_gb']} GB, "
            f"Python {machine['python']}; {own}." + (" " + "; ".join(peers) + "." if peers else ""))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def milliseconds(values: dict[str, float]) -> str:
    """`median (95th percentile), processor time`."""
    return f"{values['p50_ms']:.1f} ({values['p95_ms']:.0f}), {values['processor_ms']:.1f}"


def spread(values: dict[str, Any], name: str) -> str:
    """`median (least–most)`."""
    least, most = values[f"{name}_spread"]
    return f"{values[name]:.0f} ({least:.0f}–{most:.0f})"


def whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def small(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _two(pair: list[float]) -> str:
    return f"{pair[0]:.0f} and {pair[1]:.0f}"


def _flags(key: str) -> str:
    name = key.removeprefix("train_speed-")
    return f"{name.removesuffix('-fp32')} --dtype float32" if name.endswith("-fp32") else name


if __name__ == "__main__":
    raise SystemExit(main())
