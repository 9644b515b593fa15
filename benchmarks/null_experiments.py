"""How often do the paired comparisons err? Experiments in which the true difference is known.

Each experiment draws C clusters (sections) of 1 to 30 questions, sizes uniform, with a share of 0.2 of the variance
between clusters, and asks `luthier.engine.statistics.paired` for a verdict and a 95 % interval.

    python benchmarks/null_experiments.py --experiments 4000        about five minutes on one core
    python benchmarks/null_experiments.py --variants                why the bootstrap is the symmetric bootstrap-t
    python benchmarks/null_experiments.py --methods                 coverage of `hierarchical`, several training seeds

Kinds of paired differences (latent z = true shift + cluster effect + question noise):

- `graded`: -1, 0 or 1, as between two arms that are each right or wrong; z beyond ±1.04 (30 % differ). Under the null
  cluster sums are symmetric around zero, so the sign flip is exact up to the grain of its flips.
- `rare`: the same with 2 % of the questions differing.
- `skewed`: exponential question noise, normal cluster effect. Only nearly symmetric: an approximation is being tested.
- `skewed clusters`: the cluster effect is exponential too. Violates the symmetry outright; a stress, not a target.

Columns: decided = share of "better" + "worse" where the truth is no difference (target 5 % ± 1.5 %), its two halves,
coverage of the interval there and with a true difference (target 95 % ± 2 %), and the median width. With 4,000
experiments a share near 5 % has a standard error of 0.34 %. At 8 clusters a sign-flip p is a multiple of 2/256, so the
highest attainable level is 12/256 = 4.7 %, at 6 clusters 2/64 = 3.1 %. Where the sums of few graded differences tie,
every tie counts against the verdict: the test errs less often than it may (2.8 % at 8 clusters of `graded`, less still
of `rare`). With a true difference, rare differences all point one way; so do their sums, and at 8 and 20 clusters an
interval that assumes symmetry is too narrow (88.5 % and 91.2 %).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from luthier.engine.statistics import cluster_bootstrap_interval, hierarchical, paired

Array = NDArray[np.float64]
BETWEEN = 0.2  # share of the variance that clusters explain
THRESHOLD = {"graded": -NormalDist().inv_cdf(0.15), "rare": -NormalDist().inv_cdf(0.01)}
KINDS = ("graded", "skewed", "rare", "skewed clusters")
SHIFT = 0.5  # the true difference, in standard deviations of z
SEED = 20


def draw(rng: np.random.Generator, kind: str, count: int, shift: float) -> tuple[Array, list[int], float]:
    """One experiment: paired differences (questions,), their cluster labels, and the true mean difference."""
    labels = np.repeat(np.arange(count), rng.integers(1, 31, count))
    cluster = rng.exponential(1, count) - 1 if kind == "skewed clusters" else rng.normal(0, 1, count)
    noise = rng.normal(0, 1, len(labels)) if kind in THRESHOLD else rng.exponential(1, len(labels)) - 1
    z = shift + BETWEEN**0.5 * cluster[labels] + (1 - BETWEEN) ** 0.5 * noise
    if kind not in THRESHOLD:
        return z, labels.tolist(), shift
    edge, normal = THRESHOLD[kind], NormalDist()
    return np.sign(z) * (np.abs(z) > edge), labels.tolist(), normal.cdf(shift - edge) - normal.cdf(-edge - shift)


def error_rates(kind: str, count: int, experiments: int, resamples: int) -> str:
    """One row of the main table."""
    cover, verdicts, widths, flips = [], [], [], 0
    for shift in (0.0, SHIFT):
        inside = 0
        for index in range(experiments):
            rng = np.random.default_rng([SEED, KINDS.index(kind), count, int(shift > 0), index])
            values, labels, truth = draw(rng, kind, count, shift)
            result = paired(np.zeros(len(values)), values, labels, seed=index, resamples=resamples)
            low = -np.inf if result.low is None else result.low
            high = np.inf if result.high is None else result.high
            inside += low <= truth <= high
            if shift == 0:
                verdicts.append(result.verdict)
                widths.append(high - low)
                flips += result.test == "sign flip"
        cover.append(100 * inside / experiments)
    better, worse = (100 * verdicts.count(word) / experiments for word in ("better", "worse"))
    test = "sign flip" if flips == experiments else "bootstrap" if not flips else f"bootstrap, {flips} sign flips"
    return (
        f"| {kind} | {count} | {test} | {better + worse:.1f} | {better:.1f} + {worse:.1f} | {cover[0]:.1f} "
        f"| {cover[1]:.1f} | {np.median(widths):.3f} |"
    )


def bootstrap_variants(values: Array, labels: list[int], rng: np.random.Generator, resamples: int) -> dict[str, Array]:
    """The 95 % intervals that were considered, each (2,), from one set of resamples."""
    sizes = np.bincount(labels).astype(float)
    n, count, sums = sizes.sum(), len(sizes), np.bincount(labels, values)
    mean = sums.sum() / n
    residuals = sums - mean * sizes
    scale = count / (count - 1)
    error = np.sqrt(scale * residuals @ residuals) / n
    draws = rng.integers(0, count, (resamples, count)) + count * np.arange(resamples)[:, None]
    weights = np.bincount(draws.ravel(), minlength=resamples * count).reshape(resamples, count).astype(float)
    drawn, amount = weights @ residuals, weights @ sizes
    shift = drawn / amount
    moments = weights @ np.stack([residuals**2, residuals * sizes, sizes**2], axis=1)
    variance = moments[:, 0] - 2 * shift * moments[:, 1] + shift**2 * moments[:, 2]
    spread = np.sqrt(np.maximum(scale * variance, 0)) / amount
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(spread > 1e-12, shift / spread, np.where(np.abs(shift) > 1e-12, np.sign(shift) * np.inf, 0))
    tail = (resamples + 1) // 40
    shift, ratio = np.sort(shift), np.sort(ratio)
    normal, left_out = NormalDist(), -residuals / (n - sizes)
    left_out = left_out - left_out.mean()
    skew = -(left_out**3).sum() / (6 * (left_out @ left_out) ** 1.5) if left_out.any() else 0.0
    bias = normal.inv_cdf(float(np.clip(((shift < 0).mean() + (shift <= 0).mean()) / 2, 1e-3, 1 - 1e-3)))
    ends = [bias + z for z in (-1.96, 1.96)]
    both = np.sort(np.abs(ratio))[-2 * tail] * error
    with np.errstate(invalid="ignore"):
        return {
            "percentile": mean + shift[[tail - 1, -tail]],
            "BCa": mean + np.quantile(shift, [normal.cdf(bias + end / (1 - skew * end)) for end in ends]),
            "bootstrap-t": np.nan_to_num(mean - error * ratio[[-tail, tail - 1]], nan=mean),
            "symmetric bootstrap-t": np.array([mean - both, mean + both]),
        }


def variant_rows(kind: str, count: int, experiments: int, resamples: int) -> list[str]:
    """Rows of the `--variants` table: share of intervals with the truth inside, below and above."""
    rows = []
    for shift in (0.0, SHIFT):
        missed: dict[str, list[float]] = {}
        for index in range(experiments):
            rng = np.random.default_rng([SEED, KINDS.index(kind), count, int(shift > 0), index])
            values, labels, truth = draw(rng, kind, count, shift)
            found = bootstrap_variants(values, labels, rng, resamples)
            found["this package"] = np.array(
                cluster_bootstrap_interval(values, labels, seed=index, resamples=resamples)
            )
            for name, (low, high) in found.items():
                row = missed.setdefault(name, [0.0, 0.0, 0.0])
                row[0] += 100 * float(low > truth) / experiments
                row[1] += 100 * float(high < truth) / experiments
                row[2] += 100 * float(not np.isfinite(high - low)) / experiments
        for name, (below, above, unbounded) in missed.items():
            rows.append(
                f"| {kind} | {count} | {'null' if shift == 0 else 'true difference'} | {name} "
                f"| {100 - below - above:.1f} | {below:.1f} + {above:.1f} | {unbounded:.1f} |"
            )
    return rows


def method_row(name: str, seeds: int, count: int, parts: tuple[float, float, float, float], experiments: int) -> str:
    """A row of the `--methods` table: `parts` are the standard deviations of seed, cluster, seed x cluster, noise.

    Beside `hierarchical` stands the two-way variance with its seed-by-cluster term subtracted (Cameron, Gelbach &
    Miller 2011) and min(S, C) - 1 degrees of freedom.
    """
    from scipy.stats import t

    table = t.ppf(0.975, min(seeds, count) - 1)
    inside, other = 0, 0
    for index in range(experiments):
        rng = np.random.default_rng([SEED, seeds, count, len(name), index])
        labels = np.repeat(np.arange(count), rng.integers(1, 31, count))
        cluster = parts[1] * rng.normal(0, 1, count)
        runs = [
            parts[0] * rng.normal()
            + (cluster + parts[2] * rng.normal(0, 1, count))[labels]
            + parts[3] * rng.normal(0, 1, len(labels))
            for _ in range(seeds)
        ]
        result = hierarchical([(run, labels.tolist()) for run in runs])
        inside += result.low is not None and result.high is not None and result.low <= 0 <= result.high
        cells = np.stack([np.bincount(labels, run - result.difference) for run in runs])
        groups = (cells.sum(1), cells.sum(0), cells.ravel())
        first, second, both = (len(g) / (len(g) - 1) * (g @ g) / (len(labels) * seeds) ** 2 for g in groups)
        other += abs(result.difference) <= table * max(first + second - both, 0) ** 0.5
    return f"| {name} | {seeds} | {count} | {100 * inside / experiments:.1f} | {100 * other / experiments:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=4_000)
    parser.add_argument("--resamples", type=int, default=1_999, help="flips or resamples per comparison")
    parser.add_argument("--clusters", type=int, nargs="+", default=None)
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--methods", action="store_true")
    parser.add_argument("--out", type=Path, default=None, help="default: beside this file, named after the table")
    options = parser.parse_args()
    start, name = time.monotonic(), "null_experiments"
    rows: list[str] = []

    def show(*lines: str) -> None:
        rows.extend(lines)
        print(*lines, sep="\n", flush=True)

    if options.methods:
        name += "_methods"
        show("| source of chance | seeds | clusters | coverage % | with the cell term subtracted % |")
        show("|---|---|---|---|---|")
        kinds = {
            "seeds": (0.3, 0.0, 0.0, 1.0),
            "clusters": (0.0, 0.45, 0.0, 1.0),
            "all": (0.15, 0.45, 0.2, 1.0),
            "noise": (0.0, 0.0, 0.0, 1.0),
        }
        for seeds in (3, 5, 8):
            for count in options.clusters or (8, 20, 100):
                show(*(method_row(kind, seeds, count, parts, options.experiments) for kind, parts in kinds.items()))
    elif options.variants:
        name += "_variants"
        show("| differences | clusters | truth | interval | coverage % | missed below + above % | unbounded % |")
        show("|---|---|---|---|---|---|---|")
        for count in options.clusters or (50, 100):
            for kind in KINDS:
                show(*variant_rows(kind, count, options.experiments, options.resamples))
    else:
        heads = "differences, clusters, test, decided % (null), better + worse %, coverage % (null)"
        heads += ", coverage % (true difference), median width"
        show("| " + heads.replace(", ", " | ") + " |")
        show("|---|---|---|---|---|---|---|---|")
        for kind in KINDS:
            for count in options.clusters or (8, 20, 50, 100):
                show(error_rates(kind, count, options.experiments, options.resamples))
    print(f"{options.experiments} experiments a row, {time.monotonic() - start:.0f} s")
    out = options.out or Path(__file__).with_name(f"{name}.md")
    title = f"{options.experiments} experiments a row, {options.resamples} resamples, seed {SEED}."
    out.write_text(f"# {name.replace('_', ' ').capitalize()}\n\n{title}\n\n" + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
