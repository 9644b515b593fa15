"""The plots of the results, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def draw(found: dict[str, Any], folder: Path, titles: dict[str, str], names: dict[str, str]) -> None:
    """One PNG for each result that can be drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    for key, result in found.items():
        if key in titles:
            training(result, titles[key], names, folder / f"{key}.png")
    if "scaling" in found:
        scaling(found["scaling"], folder / "scaling.png")
    if "search_speed" in found:
        search(found["search_speed"], folder / "search_speed.png")
    if "memory" in found:
        memory(found["memory"], names, folder / "memory.png")


def training(result: dict[str, Any], title: str, names: dict[str, str], path: Path) -> None:
    """Each step's loss, and tokens per second with their spread and the bound."""
    good = {n: r for n, r in result["results"].items() if "error" not in r}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    for name, r in good.items():
        left.plot(range(1, len(r["losses"]) + 1), r["losses"], label=names[name], linewidth=2 if name == "luthier" else 1)
    left.set(xlabel="optimizer step", ylabel="loss (nats per token)" if result["workload"]["task"] == "generate" else "loss")
    left.legend(fontsize=7)
    places = range(len(good))
    speeds = [r["tokens_per_second"] for r in good.values()]
    low = [s - r["tokens_per_second_spread"][0] for s, r in zip(speeds, good.values(), strict=True)]
    high = [r["tokens_per_second_spread"][1] - s for s, r in zip(speeds, good.values(), strict=True)]
    right.barh(places, speeds, xerr=[low, high], color=["C0" if n == "luthier" else "C7" for n in good])
    right.set_yticks(list(places), [names[n] for n in good], fontsize=8)
    right.invert_yaxis()
    if result["gemm_bound_tokens_per_second"]:
        right.axvline(result["gemm_bound_tokens_per_second"], linestyle="--", color="C3", label="bound of the matrix products")
        right.legend(fontsize=7)
    right.set(xlabel="tokens per second")
    right.locator_params(axis="x", nbins=5)
    _save(figure, title, path)


def scaling(result: dict[str, Any], path: Path) -> None:
    """Time per token and peak memory against tokens."""
    sizes = [s for s in result["sizes"] if "error" not in s]
    tokens = [s["tokens"] for s in sizes]
    times = [s["microseconds_per_token"] for s in sizes]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    errors = [[t - s["spread"][0] for t, s in zip(times, sizes, strict=True)],
              [s["spread"][1] - t for t, s in zip(times, sizes, strict=True)]]
    left.errorbar(tokens, times, yerr=errors, marker="o", capsize=3)
    left.set(xscale="log", xlabel="tokens", ylabel="µs per token")
    left.set_ylim(bottom=0)
    right.plot(tokens, [s["peak_mb"] for s in sizes], marker="o", label="peak of the process tree")
    right.plot(tokens, [s["floor_mb"] for s in sizes], linestyle="--", label="imports alone")
    right.set(xscale="log", xlabel="tokens", ylabel="MB")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8)
    _save(figure, "One epoch of a pico model", path)


def search(result: dict[str, Any], path: Path) -> None:
    """Median milliseconds by the clock and of the processor, and memory, against passages."""
    sizes = result["sizes"]
    passages = [s["passages"] for s in sizes]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    for place, way in enumerate(("vector", "exact", "fused", "fused_embedded")):
        left.plot(passages, [s[way]["p50_ms"] for s in sizes], marker="o", color=f"C{place}", label=way.replace("_", ", "))
        left.plot(passages, [s[way]["processor_ms"] for s in sizes], linestyle=":", color=f"C{place}")
    left.set(xscale="log", yscale="log", xlabel="passages", ylabel="ms (dotted: of the processor)")
    left.legend(fontsize=7)
    right.plot(passages, [s["searching_mb"] for s in sizes], marker="o", label="searching")
    right.plot(passages, [s["build"]["peak_mb"] for s in sizes], marker="o", label="making the index")
    right.plot(passages, [s["floor_mb"] for s in sizes], linestyle="--", label="torch and MiniLM alone")
    right.set(xscale="log", xlabel="passages", ylabel="peak MB")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8)
    _save(figure, "Search by the number of passages", path)


def memory(result: dict[str, Any], names: dict[str, str], path: Path) -> None:
    """Peak memory against rows, beside the floors."""
    figure, axes = pyplot.subplots(figsize=(6, 3.8))
    for place, (name, points) in enumerate(result["results"].items()):
        good = [p for p in points if "error" not in p]
        rows = [p["rows"] for p in good]
        axes.plot(rows, [p["peak_mb"] for p in good], marker="o", color=f"C{place}", label=names[name])
        axes.plot(rows, [p["floor_mb"] for p in good], linestyle=":", color=f"C{place}")
    axes.set(xscale="log", xlabel="rows", ylabel="peak MB (dotted: imports alone)")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    _save(figure, "Peak memory and the number of rows", path)


def _save(figure: Any, title: str, path: Path) -> None:
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
