"""Paired comparisons with clustered questions: is the right arm better than the left one, and by how much?

Questions about one section of a document share its difficulty, so the **cluster** (the section) is the unit that
is drawn at random, never the question. With cluster sums `D_c` of the paired differences and cluster sizes `n_c`,
every procedure here looks at the question-weighted mean `m = sum D_c / sum n_c`.

- **6 to 49 clusters: sign flip.** If `D_c - delta n_c` is as likely as its negative, flipping the signs of whole
  clusters gives the null distribution (Fisher 1935; Canay, Romano & Shaikh 2017). *Assumption:* cluster sums are
  independent and symmetric around `delta n_c`; then the level is exact at any number of clusters. Two arms that are
  the same up to chance satisfy it; a skewed effect does not, and the level is then approximate.
- **From 50 clusters: cluster bootstrap**, symmetric bootstrap-t. *Assumption:* clusters are independent and none
  dominates; symmetry is not needed.
- **Below 6 clusters** no two-sided p value below 0.05 exists (2 / 2^5 = 0.0625): undecided, no interval.

These speak of *this model*. For *this method*, trained anew under several seeds, use `hierarchical`.
Results depend only on the numbers, the grouping and the integer seed: never on the order or the names of clusters.
`benchmarks/null_experiments.py` measures the error rates.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Clusters = Sequence[Hashable] | NDArray[Any]
Record = TypeVar("Record")
TestName = Literal["sign flip", "cluster bootstrap", "two-way t", "none"]
Verdict = Literal["better", "worse", "no difference within", "undecided"]
Unit = Literal["questions", "seeds"]

FEWEST_CLUSTERS = 6  # below this the sign-flip test cannot reach 5 %
BOOTSTRAP_CLUSTERS = 50  # from here on the bootstrap needs no symmetry and is accurate
EXACT_CLUSTERS = 14  # up to here all sign vectors are enumerated
FEWEST_SEEDS = 3
_CHUNK = 1 << 22  # cells of a resampling matrix held at a time (32 MiB)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One paired comparison; `difference`, `low`, `high` and `margin` are in the unit of the values compared.

    `difference` is right - left. `low`, `high`, `p` (two-sided) are None where none can be given. `n` counts paired
    values (over all seeds), `clusters` the distinct clusters. `needed` is about how many more questions (or seeds, see
    `needed_unit`) a verdict would take, at 80 % power; None when decided or when there is nothing to see.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    clusters: int
    test: TestName
    verdict: Verdict
    needed: int | None
    margin: float | None = None
    needed_unit: Unit = "questions"
    seeds: int = 1

    def __str__(self) -> str:
        """The verdict in words: "better", "no difference within ±0.02", "undecided (about 140 more questions)"."""
        if self.verdict == "no difference within":
            return f"no difference within ±{self.margin:g}"
        if self.verdict == "undecided" and self.needed is not None:
            return f"undecided (about {self.needed} more {self.needed_unit})"
        return self.verdict


def sign_flip_test(values: ArrayLike, clusters: Clusters, *, seed: int = 0, flips: int = 9_999) -> float:
    """Two-sided p value of "the mean paired difference is zero", by flipping the signs of whole clusters.

    `values`: paired differences, shape (questions,). `clusters`: one label a question. The statistic is the sum of all
    differences. Up to 14 clusters all 2^C sign vectors are enumerated and p is exact; beyond, `flips` random vectors
    give p = (b + 1) / (flips + 1) (Phipson & Smyth 2010), valid for any number of flips.
    Raises ValueError on empty, non-finite or mismatched input.
    """
    return _flip_p(*_flip_spans(*_cluster_sums(values, clusters), seed, flips))


def sign_flip_interval(
    values: ArrayLike, clusters: Clusters, level: float = 0.95, *, seed: int = 0, flips: int = 9_999
) -> tuple[float, float]:
    """All shifts delta that `sign_flip_test(values - delta, clusters)` does not reject at 1 - level, as (low, high).

    Same flips as the test, so zero lies inside exactly when p > 1 - level. Unbounded (-inf, inf) with too few
    clusters for that level. Arguments and errors as in `sign_flip_test`.
    """
    return _flip_interval(*_flip_spans(*_cluster_sums(values, clusters), seed, flips), _alpha(level))


def cluster_bootstrap_interval(
    values: ArrayLike, clusters: Clusters, level: float = 0.95, *, seed: int = 0, resamples: int = 9_999
) -> tuple[float, float]:
    """Interval of the mean paired difference by the symmetric bootstrap-t over clusters, as (low, high).

    Whole clusters are drawn with replacement; |m* - m| / se*, with the cluster-robust standard error of each resample,
    replaces the t table (Hall 1988; Cameron, Gelbach & Miller 2008). Chosen because it stays nearest to 95 % on skewed
    and on rare differences: `benchmarks/null_experiments.py --variants` compares it with percentile, BCa and
    equal-tailed bootstrap-t. Unbounded (-inf, inf) when so few clusters hold a difference that many resamples hold
    none. Arguments and errors as in `sign_flip_test`.
    """
    sums, sizes = _cluster_sums(values, clusters)
    mean, (half, _) = float(sums.sum() / sizes.sum()), _bootstrap_t(sums, sizes, _alpha(level), seed, resamples)
    return mean - half, mean + half


def jackknife_values(
    metric: Callable[[Sequence[Record]], float], records: Sequence[Record], clusters: Clusters
) -> Array:
    """Cluster jackknife pseudo-values of any metric, one per record: shape (records,), in the unit of the metric.

    Cluster c of n_c out of n records gets h theta - (h - 1) theta_without_c with h = n / n_c (the delete-m_j jackknife
    of Busing, Meijer & van der Leeden 1999), repeated for each of its records. For a mean over records this is the
    cluster's own mean, so sums, test and interval are the ordinary ones. Give the pseudo-values of both arms to
    `paired`. The metric is called (clusters + 1) times. Raises ValueError with fewer than two clusters, mismatched
    lengths or a metric that is not finite.
    """
    codes, n = _codes(clusters, len(records), "records"), len(records)
    sizes = np.bincount(codes)
    if len(sizes) < 2:
        raise ValueError("clusters: found 1 distinct label, but leaving one cluster out needs at least 2")
    thetas = [float(metric(records))]
    for out in range(len(sizes)):
        thetas.append(float(metric([r for r, code in zip(records, codes, strict=True) if code != out])))
    for index in np.flatnonzero(~np.isfinite(thetas))[:1]:
        where = f"without cluster {list(clusters)[int(np.argmax(codes == index - 1))]!r}" if index else "on all records"
        raise ValueError(f"metric {where} is {thetas[index]}: it must be finite with any one cluster left out")
    share = n / sizes
    pseudo: Array = share * thetas[0] - (share - 1) * np.array(thetas[1:])
    return pseudo[codes]


def minimum_effect(values: ArrayLike, clusters: Clusters, power: float = 0.8, level: float = 0.95) -> float:
    """Smallest true difference that a set like this one shows with probability `power`: (z_level + z_power) se.

    Normal approximation with the cluster-robust standard error, hence with the design effect; in the unit of the
    values. Raises ValueError as `sign_flip_test`, and with fewer than two clusters.
    """
    return _z(power, level) * _standard_error(*_cluster_sums(values, clusters))


def questions_needed(
    values: ArrayLike, clusters: Clusters, effect: float, power: float = 0.8, level: float = 0.95
) -> int:
    """About how many more questions, in new clusters of the present sizes, until a difference of `effect` is seen.

    n_total = n (z_level + z_power)^2 se^2 / effect^2; 0 when there are enough already.
    Raises ValueError as `minimum_effect`, and unless effect is finite and not zero.
    """
    if not np.isfinite(effect) or effect == 0:
        raise ValueError(f"effect is {effect}: a finite difference other than 0 is needed")
    ratio = (minimum_effect(values, clusters, power, level) / effect) ** 2
    return max(0, int(np.ceil(np.size(values) * (ratio - 1))))


def paired(
    left: ArrayLike,
    right: ArrayLike,
    clusters: Clusters,
    *,
    margin: float | None = None,
    level: float = 0.95,
    seed: int = 0,
    higher_is_better: bool = True,
    resamples: int = 9_999,
) -> Comparison:
    """Compares two arms on the same questions: `left`, `right` (questions,) of scores, `clusters` one label each.

    Fewer than 6 clusters: undecided, no interval. 6 to 49: sign flip. From 50: cluster bootstrap, except where its
    interval is unbounded (only a handful of clusters hold any difference): sign flip again.
    "no difference within" when `margin` is given and the whole interval lies within ±margin, whatever its side of
    zero; otherwise "better" or "worse" when the interval excludes zero. No difference on any question gives [0, 0]:
    these answers agree, which cannot say how rare a disagreement is.
    Raises ValueError on empty, non-finite or mismatched input or a margin that is not positive.
    """
    before, after = _finite(left, "left"), _finite(right, "right")
    if len(before) != len(after):
        raise ValueError(f"left has {len(before)} values, right has {len(after)}: one of each per question is needed")
    sums, sizes = _cluster_sums(after - before, clusters)
    n, count, alpha = len(before), len(sums), _alpha(level)
    mean, half = float(sums.sum() / n), np.inf
    p: float | None = None
    interval: tuple[float, float] | None = None
    test: TestName = "none"
    if count >= BOOTSTRAP_CLUSTERS:
        half, p = _bootstrap_t(sums, sizes, alpha, seed, resamples)
        test, interval = "cluster bootstrap", (mean - half, mean + half)
    if count >= FEWEST_CLUSTERS and not np.isfinite(half):
        spans = _flip_spans(sums, sizes, seed, resamples)
        test, interval, p = "sign flip", _flip_interval(*spans, alpha), _flip_p(*spans)
    verdict, effect = _verdict(mean, interval, margin, higher_is_better)
    needed: int | None = None
    if verdict == "undecided" and (effect or interval is None):
        ratio = (_z(0.8, level) * _standard_error(sums, sizes) / effect) ** 2 if effect and count > 1 else 0.0
        # Never less than a typical cluster: with few clusters the grain of the flips is the limit, not the variance.
        needed = int(np.ceil(max(n * (ratio - 1), n / count * max(1, FEWEST_CLUSTERS - count))))
    low, high = interval if interval and np.isfinite(interval).all() else (None, None)
    return Comparison(mean, low, high, p, n, count, test, verdict, needed, margin)


def hierarchical(
    differences_by_seed: Sequence[tuple[ArrayLike, Clusters]],
    *,
    margin: float | None = None,
    level: float = 0.95,
    higher_is_better: bool = True,
) -> Comparison:
    """Compares two *methods*: one (differences, clusters) a training seed, shapes as in `sign_flip_test`.

    Seeds are the outer level and clusters are crossed with them: equal labels are the same cluster under every seed.
    V = V_seeds + V_clusters, each the cluster-robust variance of its own grouping, with Student's t on Satterthwaite's
    (1946) degrees of freedom V^2 / (V_seeds^2 / (S - 1) + V_clusters^2 / (C - 1)). Cameron, Gelbach & Miller (2011)
    also subtract the seed-by-cluster term; at three seeds that is too small, even negative: in normal data of 3-8
    seeds and 8-100 clusters it covered 85-100 %, this sum 92-99 % (it counts pure noise twice: cautious, not blind).
    Fewer than 3 seeds or 6 clusters: undecided, no interval. `needed` counts the larger source of chance, seeds or
    questions. Raises ValueError as `paired`, naming the seed's place in the list.
    """
    seeds, alpha, labels, parts = len(differences_by_seed), _alpha(level), list[Hashable](), list[Array]()
    for place, (numbers, clusters) in enumerate(differences_by_seed):
        parts.append(_finite(numbers, f"seed {place}: values"))
        labels += clusters.tolist() if isinstance(clusters, np.ndarray) else clusters
        _codes(clusters, len(parts[-1]), f"seed {place}: values")
    values = _finite(np.concatenate([np.empty(0), *parts]), "differences_by_seed")
    rows, columns = np.repeat(np.arange(seeds), [len(part) for part in parts]), _codes(labels, len(values), "values")
    n, count, mean = len(values), int(columns.max()) + 1, float(values.mean())
    needed: int | None = None
    if seeds < FEWEST_SEEDS or count < FEWEST_CLUSTERS:
        verdict, _ = _verdict(mean, None, margin, higher_is_better)
        needed = FEWEST_SEEDS - seeds if seeds < FEWEST_SEEDS else -(-n * (FEWEST_CLUSTERS - count) // (count * seeds))
        unit: Unit = "seeds" if seeds < FEWEST_SEEDS else "questions"
        return Comparison(mean, None, None, None, n, count, "none", verdict, needed, margin, unit, seeds)
    by_seed, by_cluster = (_sandwich(np.bincount(codes, values - mean), n) for codes in (rows, columns))
    error, half, p = (by_seed + by_cluster) ** 0.5, 0.0, float(mean == 0)
    if error > 0:
        student: Any = importlib.import_module("scipy.stats").t  # slow to import, and wanted here alone
        freedom = error**4 / (by_seed**2 / (seeds - 1) + by_cluster**2 / (count - 1))
        half = error * float(student.ppf(1 - alpha / 2, freedom))
        p = 2 * float(student.sf(abs(mean) / error, freedom))
    verdict, effect = _verdict(mean, (mean - half, mean + half), margin, higher_is_better)
    unit = "seeds" if by_seed >= by_cluster else "questions"
    # What is left for the larger source once the smaller one, which stays as it is, has had its share.
    left = (effect / _z(0.8, level)) ** 2 - min(by_seed, by_cluster)
    if verdict == "undecided" and left > 0:
        more = (seeds if unit == "seeds" else n / seeds) * (max(by_seed, by_cluster) / left - 1)
        needed = max(1, int(np.ceil(more)))
    return Comparison(mean, mean - half, mean + half, p, n, count, "two-way t", verdict, needed, margin, unit, seeds)


def holm(p_values: ArrayLike) -> Array:
    """Holm's (1979) step-down adjusted p values, shape and order of the input: reject where adjusted <= 1 - level.

    Holds the family-wise error under any dependence. Raises ValueError on empty input or a p outside [0, 1].
    """
    p = _finite(p_values, "p_values")
    for index in np.flatnonzero((p < 0) | (p > 1))[:1]:
        raise ValueError(f"p_values[{index}] is {p[index]}: a probability in [0, 1] is needed")
    order, adjusted = np.argsort(p, kind="stable"), np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def _flip_spans(sums: Array, sizes: Array, seed: int, flips: int) -> tuple[Array, Array]:
    """For every sign vector but the identity, the shifts delta at which it is at least as extreme as the data.

    With F the flipped and K the kept clusters, |sum_K - sum_F| >= |sum_K + sum_F| for the shifted sums D_c - delta n_c
    exactly when sum_F and sum_K are not of the same strict sign, so when delta lies between the mean of F and the mean
    of K. Every span holds the mean of all, so p falls on both sides of it and the test inverts to order statistics.
    """
    count, n, total = len(sums), sizes.sum(), sums.sum()
    if count <= EXACT_CLUSTERS:  # the last cluster is always kept: F and K swapped give the same span
        patterns: Iterable[NDArray[Any]] = [np.arange(1, 1 << (count - 1))[:, None] >> np.arange(count) & 1]
    else:
        rng, rows = np.random.default_rng(seed), max(1, _CHUNK // count)
        shapes = [(min(rows, flips - start), count) for start in range(0, flips, rows)]
        patterns = (rng.integers(0, 2, shape, dtype=np.int8) for shape in shapes)
    both = np.stack([sums, sizes], axis=1)
    flipped, size = np.concatenate([pattern.astype(np.float64) @ both for pattern in patterns]).T
    kept, tiny = total - flipped, 1e-12 * np.abs(sums).sum()
    flipped[np.abs(flipped) <= tiny] = 0.0  # ties are exact in arithmetic and must survive the rounding
    kept[np.abs(kept) <= tiny] = 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([flipped / size, kept / (n - size)])
    trivial = (size == 0) | (size == n)  # the identity or its mirror, drawn by chance
    return np.where(trivial, -np.inf, ends.min(axis=0)), np.where(trivial, np.inf, ends.max(axis=0))


def _flip_p(lows: Array, highs: Array) -> float:
    return float((1 + np.count_nonzero((lows <= 0) & (highs >= 0))) / (1 + len(lows)))


def _flip_interval(lows: Array, highs: Array, alpha: float) -> tuple[float, float]:
    allowed = int(alpha * (1 + len(lows)) + 1e-9)  # delta is rejected when no more spans than this, with the identity
    if allowed == 0:
        return -np.inf, np.inf
    low, high = np.partition(lows, allowed - 1)[allowed - 1], np.partition(highs, -allowed)[-allowed]
    return float(low), float(high)


def _bootstrap_t(sums: Array, sizes: Array, alpha: float, seed: int, resamples: int) -> tuple[float, float]:
    """(half width, two-sided p) of the symmetric bootstrap-t; the half width is inf where the tail has no bound."""
    count, n, mean = len(sums), sizes.sum(), sums.sum() / sizes.sum()
    residuals, error = sums - mean * sizes, _standard_error(sums, sizes)
    floor = 1e-12 * float(np.abs(sums).max())
    if error * n <= floor:
        return 0.0, 1.0 if abs(mean) <= floor else 1 / (resamples + 1)
    columns = np.stack([residuals, sizes, residuals**2, residuals * sizes, sizes**2], axis=1)
    rng, rows, ratios = np.random.default_rng(seed), max(1, _CHUNK // count), []
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        draws = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(draws.ravel(), minlength=size * count).reshape(size, count)  # how often each was drawn
        first, amount, square, cross, large = (weights.astype(np.float64) @ columns).T
        shift = first / amount
        variance = count / (count - 1) * (square - 2 * shift * cross + shift**2 * large)
        known = variance > (floor + 1e-9 * error * n) ** 2
        spread = np.where(known, np.sqrt(np.where(known, variance, 1.0)) / amount, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios.append(np.where(known | (np.abs(shift) > floor), np.abs(shift) / spread, 0.0))
    ratio, allowed = np.concatenate(ratios), int(alpha * (resamples + 1) + 1e-9)
    p = float((1 + np.count_nonzero(ratio >= abs(mean) / error)) / (resamples + 1))
    return float(error * np.partition(ratio, -allowed)[-allowed]) if allowed else np.inf, p


def _verdict(
    mean: float, interval: tuple[float, float] | None, margin: float | None, higher_is_better: bool
) -> tuple[Verdict, float]:
    """The verdict, and the half width that would have decided: to leave zero, or to fit within ±margin."""
    if margin is not None and not 0 < margin < np.inf:
        raise ValueError(f"margin is {margin}: a positive number in the unit of the values is needed")
    effect = abs(mean) if margin is None else max(abs(mean), margin - abs(mean))
    if interval and margin is not None and -margin <= interval[0] and interval[1] <= margin:
        return "no difference within", effect
    if interval and (interval[0] > 0 or interval[1] < 0):
        return "better" if (interval[0] > 0) == higher_is_better else "worse", effect
    return "undecided", effect


def _finite(values: ArrayLike, name: str) -> Array:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}: a flat list with at least one number is needed")
    for index, item in enumerate(array.tolist() if array.dtype.kind not in "bif" else ()):
        if not isinstance(item, int | float):
            raise ValueError(f"{name}[{index}] is {item!r}: a number is needed")
    array = array.astype(np.float64)
    for index in np.flatnonzero(~np.isfinite(array))[:1]:
        raise ValueError(f"{name}[{index}] is {array[index]}: every number must be finite")
    return array


def _codes(clusters: Clusters, length: int, name: str) -> NDArray[np.intp]:
    """Labels as integers 0, 1, ... in order of first appearance."""
    labels = clusters.tolist() if isinstance(clusters, np.ndarray) else list(clusters)
    if len(labels) != length or length == 0:
        raise ValueError(f"{name}: found {length}, clusters: found {len(labels)}: one label each, and at least one")
    known: dict[Hashable, int] = {}
    for index, label in enumerate(labels):
        if label is None or label != label:
            raise ValueError(f"clusters[{index}] is {label}: every question needs the label of its cluster")
        known.setdefault(label, len(known))
    return np.array([known[label] for label in labels], dtype=np.intp)


def _cluster_sums(values: ArrayLike, clusters: Clusters) -> tuple[Array, Array]:
    """(sums, sizes), each (clusters,), in an order that depends on the numbers alone, so that seeds mean the same."""
    array = _finite(values, "values")
    codes = _codes(clusters, len(array), "values")
    order = np.lexsort((array, codes))  # sorted within the cluster: the rounding of a sum, too, ignores row order
    sizes = np.bincount(codes).astype(np.float64)
    sums = np.add.reduceat(array[order], np.cumsum(sizes, dtype=np.intp) - sizes.astype(np.intp))
    rank = np.lexsort((sizes, sums))
    return sums[rank], sizes[rank]


def _alpha(level: float) -> float:
    if not 0.5 <= level < 1:
        raise ValueError(f"level is {level}: a confidence level in [0.5, 1) is needed, such as 0.95")
    return 1 - level


def _z(power: float, level: float) -> float:
    if not 0.5 <= power < 1:
        raise ValueError(f"power is {power}: a probability in [0.5, 1) is needed, such as 0.8")
    return NormalDist().inv_cdf(1 - _alpha(level) / 2) + NormalDist().inv_cdf(power)


def _sandwich(residual_sums: Array, n: float) -> float:
    """Cluster-robust variance of a mean over n: G / (G - 1) sum_g r_g^2 / n^2 (Liang & Zeger 1986)."""
    groups = len(residual_sums)
    if groups < 2:
        raise ValueError(f"clusters: found {groups} distinct label: a standard error needs at least 2")
    return float(groups / (groups - 1) * (residual_sums @ residual_sums) / n**2)


def _standard_error(sums: Array, sizes: Array) -> float:
    n = float(sizes.sum())
    return _sandwich(sums - sums.sum() / n * sizes, n) ** 0.5
