"""Paired comparisons with clustered questions: is the right arm better than the left one, and by how much?

Questions about one section of a document share its difficulty, so the **cluster** (the section) is what is drawn at
random, never the question. With cluster sums `D_c` of the paired differences and cluster sizes `n_c`, every procedure
here looks at the question-weighted mean `m = sum D_c / sum n_c`.

- **6 to 49 clusters: sign flip.** Flipping the signs of whole clusters gives the null distribution (Fisher 1935;
  Canay, Romano & Shaikh 2017). *Assumption:* the `D_c - delta n_c` are independent and symmetric around zero; then the
  level is exact at any number of clusters. Two arms that are the same up to chance satisfy it; skewed effects do not.
- **From 50 clusters: cluster bootstrap.** *Assumption:* clusters are independent and none dominates.
- **Below 6 clusters** no two-sided p value below 0.05 exists (2 / 2^5 = 0.0625): undecided, no interval.

These speak of *this model*; `hierarchical` of *this method*, trained anew under several seeds. Results depend on the
numbers, the grouping and the seed alone, not on the order or names of clusters. Empty, non-finite or mismatched input
raises ValueError with place and finding. `benchmarks/null_experiments.py` measures the error rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luthier.engine.two_way import seeds_to, two_way_half, two_way_p

Array = NDArray[np.float64]
Clusters = Sequence[Hashable] | NDArray[Any]
Record = TypeVar("Record")
Interval = tuple[float, float]
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

    `difference` is right - left. `low`, `high`, `p` (two-sided) are None where none can be given. `n`: values, over all
    seeds. `needed`: about how many more questions, or seeds, until a verdict at 80 % power; None when decided.
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
        """The verdict in words, such as "undecided (about 140 more questions)" or "no difference within ±0.02"."""
        if self.verdict == "undecided" and self.needed is not None:
            return f"undecided (about {self.needed} more {self.needed_unit})"
        return f"{self.verdict} ±{self.margin:g}" if self.verdict == "no difference within" else self.verdict


def sign_flip_test(values: ArrayLike, clusters: Clusters, *, seed: int = 0, flips: int = 9_999) -> float:
    """Two-sided p value of "the mean paired difference is zero", by flipping the signs of whole clusters.

    `values`: paired differences, shape (questions,). `clusters`: one label a question. Statistic: the sum of all. Up to
    14 clusters all 2^C sign vectors are enumerated; beyond, p = (b + 1) / (flips + 1) (Phipson & Smyth 2010).
    """
    return _invert(*_flip_spans(*_cluster_sums(values, clusters), seed, flips), 0.05)[2]


def sign_flip_interval(
    values: ArrayLike, clusters: Clusters, level: float = 0.95, *, seed: int = 0, flips: int = 9_999
) -> Interval:
    """All shifts delta that `sign_flip_test(values - delta, clusters)` does not reject at 1 - level, as (low, high).

    Same flips, so zero lies inside exactly when the test's p > 1 - level. (-inf, inf): too few clusters for that level.
    """
    return _invert(*_flip_spans(*_cluster_sums(values, clusters), seed, flips), _alpha(level))[:2]


def cluster_bootstrap_interval(
    values: ArrayLike, clusters: Clusters, level: float = 0.95, *, seed: int = 0, resamples: int = 9_999
) -> Interval:
    """Interval of the mean paired difference by the symmetric bootstrap-t over clusters, as (low, high).

    Whole clusters are drawn with replacement; |m* - m| / se*, se* the cluster-robust error of each resample, replaces
    the t table (Hall 1988; Cameron, Gelbach & Miller 2008). Chosen over percentile, BCa and equal-tailed bootstrap-t by
    `benchmarks/null_experiments.py --variants`. (-inf, inf): too few clusters hold a difference.
    """
    sums, sizes = _cluster_sums(values, clusters)
    mean, (half, _) = float(sums.sum() / sizes.sum()), _bootstrap_t(sums, sizes, _alpha(level), seed, resamples)
    return mean - half, mean + half


def mean_interval(values: ArrayLike, clusters: Clusters, level: float = 0.95) -> Interval | None:
    """Interval of one arm's mean: Student's t with the cluster-robust error and C - 1 degrees of freedom.

    It describes; verdicts come from paired tests. Values within [0, 1] give an interval within [0, 1]. None below 6
    clusters, and when all values are equal (then the data cannot say how far they would spread).
    """
    numbers = _finite(values, "values")
    sums, sizes = _cluster_sums(numbers, clusters)
    if len(sums) < FEWEST_CLUSTERS or np.ptp(numbers) == 0:
        return None
    from scipy.stats import t as student

    mean = float(numbers.mean())
    error = float(np.sqrt(_variance(sums - mean * sizes, sizes.sum())))
    half = float(student.ppf(1 - _alpha(level) / 2, len(sums) - 1)) * error
    if numbers.min() >= 0 and numbers.max() <= 1:
        return max(0.0, mean - half), min(1.0, mean + half)
    return mean - half, mean + half


def jackknife_values(
    metric: Callable[[Sequence[Record]], float], records: Sequence[Record], clusters: Clusters
) -> Array:
    """Cluster jackknife pseudo-values of any metric, one per record: shape (records,), in the unit of the metric.

    Cluster c of n_c out of n records gets h theta - (h - 1) theta_without_c, h = n / n_c (the delete-m_j jackknife of
    Busing, Meijer & van der Leeden 1999). For a mean over records this is the cluster's own mean, so `paired` of both
    arms' pseudo-values gives the ordinary result. Calls the metric (clusters + 1) times; needs two clusters or more.
    """
    codes = _codes(clusters, len(records), "records")
    share = len(records) / np.bincount(codes)
    if len(share) < 2:
        raise ValueError("clusters: found 1 distinct label: at least 2 are needed")
    whole = metric(records)
    without = [metric([r for r, c in zip(records, codes, strict=True) if c != out]) for out in range(len(share))]
    thetas = _finite([whole, *without], "metric on [all records, all without the first cluster, second, ...]")
    return np.asarray(share * thetas[0] - (share - 1) * thetas[1:])[codes]


def minimum_effect(values: ArrayLike, clusters: Clusters, power: float = 0.8, level: float = 0.95) -> float:
    """Smallest true difference that a set like this shows with probability `power`: (z_level + z_power) robust se."""
    sums, sizes = _cluster_sums(values, clusters)
    return _z(power, level) * float(np.sqrt(_variance(sums - sums.sum() / sizes.sum() * sizes, sizes.sum())))


def questions_needed(
    values: ArrayLike, clusters: Clusters, effect: float, power: float = 0.8, level: float = 0.95
) -> int:
    """About how many more questions, in clusters like these, show `effect`: n ((minimum_effect / effect)^2 - 1)."""
    if not 0 < abs(effect) < np.inf:
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

    Fewer than 6 clusters: undecided, no interval. 6 to 49: sign flip. From 50: cluster bootstrap, except where too few
    clusters hold any difference to bound it: sign flip. "no difference within" when the whole interval lies within
    ±margin, whatever its side of zero; else "better" or "worse" when it excludes zero. No difference on any question
    gives [0, 0]: these answers agree, which cannot say how rare a disagreement is.
    """
    before, after = _finite(left, "left"), _finite(right, "right")
    if len(before) != len(after):
        raise ValueError(f"left has {len(before)} values, right has {len(after)}: one of each per question is needed")
    sums, sizes = _cluster_sums(after - before, clusters)
    n, count, alpha, half = len(before), len(sums), _alpha(level), np.inf
    mean, p, interval, needed = float(sums.sum() / n), None, None, None
    test: TestName = "none"
    if count >= BOOTSTRAP_CLUSTERS:
        half, p = _bootstrap_t(sums, sizes, alpha, seed, resamples)
        test, interval = "cluster bootstrap", (mean - half, mean + half)
    if count >= FEWEST_CLUSTERS and not np.isfinite(half):
        *ends, p = _invert(*_flip_spans(sums, sizes, seed, resamples), alpha)
        test, interval = "sign flip", (ends[0], ends[1])
    verdict, effect = _verdict(mean, interval, margin, higher_is_better)
    if verdict == "undecided" and (effect or interval is None):
        # Never less than a typical cluster: with few clusters the grain of the flips is the limit, not the variance.
        needed = int(np.ceil(n / count * max(1, FEWEST_CLUSTERS - count)))
        if effect and count > 1:
            needed = max(needed, questions_needed(after - before, clusters, effect, level=level))
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
    The interval's half width is sqrt(t_{S-1}^2 V_seeds + t_{C-1}^2 V_clusters), the variances cluster-robust: each source
    has its own t quantile (the squares of half widths are added, Graybill & Wang 1980). One t on Satterthwaite's degrees
    of freedom trusts a V_seeds that came out small by chance: with 3 seeds that rejects 1.5 times too often at 5 %, and 5
    times at the 0.4 % that Holm asks of 12 pairs; this never does, at a price where seeds hardly differ. Nor is the seed-
    by-cluster term subtracted, as Cameron, Gelbach & Miller (2011) do: too small at few seeds.
    Fewer than 3 seeds or 6 clusters: undecided. `needed` counts the larger source of chance, seeds or questions; seeds where
    the variance would do and only their small number keeps the interval wide.
    """
    mean, n, seeds, count, by_seed, by_cluster = two_ways(differences_by_seed)
    alpha, needed = _alpha(level), None
    if seeds < FEWEST_SEEDS or count < FEWEST_CLUSTERS:
        unit: Unit = "seeds" if seeds < FEWEST_SEEDS else "questions"
        needed = FEWEST_SEEDS - seeds if seeds < FEWEST_SEEDS else -(-n * (FEWEST_CLUSTERS - count) // (count * seeds))
        verdict = _verdict(mean, None, margin, higher_is_better)[0]
        return Comparison(mean, None, None, None, n, count, "none", verdict, needed, margin, unit, seeds)
    half = two_way_half(by_seed, seeds, by_cluster, count, alpha)
    p = two_way_p(mean, by_seed, seeds, by_cluster, count)
    verdict, effect = _verdict(mean, (mean - half, mean + half), margin, higher_is_better)
    have, unit = (seeds, "seeds") if by_seed >= by_cluster else (n / seeds, "questions")
    # The smaller source stays as it is; the larger one has to fit into what that leaves of the variance wanted.
    left = (effect / _z(0.8, level)) ** 2 - min(by_seed, by_cluster)
    if verdict == "undecided" and left > 0:
        needed = int(np.ceil(have * (max(by_seed, by_cluster) / left - 1)))
    if needed is not None and needed < 1:
        # The variance is small enough: what keeps the interval wide is how little so few seeds tell of theirs.
        needed, unit = seeds_to(effect, by_seed, seeds, by_cluster, count, alpha), "seeds"
    return Comparison(mean, mean - half, mean + half, p, n, count, "two-way t", verdict, needed, margin, unit, seeds)


def holm(p_values: ArrayLike) -> Array:
    """Holm's (1979) step-down adjusted p values, in the order given; valid under any dependence of the tests."""
    p = _finite(p_values, "p_values")
    for index in np.flatnonzero((p < 0) | (p > 1))[:1]:
        raise ValueError(f"p_values[{index}] is {p[index]}: a probability in [0, 1] is needed")
    order = np.argsort(p, kind="stable")
    return np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))[np.argsort(order)]


def two_ways(parts: Sequence[tuple[ArrayLike, Clusters]]) -> tuple[float, int, int, int, float, float]:
    """(mean, values, seeds, clusters, variance by seeds, variance by clusters) of one (values, clusters) a seed.

    A variance of fewer than two groups is 0: the data can't say.
    """
    numbers = [_finite(values, f"seed {i}: values") for i, (values, _) in enumerate(parts)]
    for place, (part, (_, clusters)) in enumerate(zip(numbers, parts, strict=True)):
        _codes(clusters, len(part), f"seed {place}: values")
    values = _finite(np.concatenate([[], *numbers]), "differences_by_seed")
    columns = _codes([label for _, clusters in parts for label in clusters], len(values), "values")
    rows, n, mean = np.repeat(np.arange(len(parts)), [len(part) for part in numbers]), len(values), float(values.mean())
    found = [np.bincount(codes, values - mean) for codes in (rows, columns)]
    by_seed, by_cluster = (_variance(sums, n) if len(sums) > 1 else 0.0 for sums in found)
    return mean, n, len(parts), len(found[1]), by_seed, by_cluster


def _flip_spans(sums: Array, sizes: Array, seed: int, flips: int) -> tuple[Array, Array]:
    """For every sign vector but the identity, the shifts delta at which it is at least as extreme as the data.

    With F the flipped and K the kept clusters, |sum_K - sum_F| >= |sum_K + sum_F| of the shifted sums D_c - delta n_c
    exactly when delta lies between the mean of F and the mean of K. Every such span holds the mean of all, so p falls
    on both sides of it and the test inverts to order statistics.
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
    tiny = 1e-12 * np.abs(sums).sum()  # ties are exact in arithmetic and must survive the rounding
    flipped, kept = (np.where(np.abs(part) <= tiny, 0.0, part) for part in (flipped, total - flipped))
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([flipped / size, kept / (n - size)])
    # 0 / 0 is the identity or its mirror, drawn by chance: as extreme as the data at every shift.
    return np.nan_to_num(ends.min(axis=0), nan=-np.inf), np.nan_to_num(ends.max(axis=0), nan=np.inf)


def _invert(lows: Array, highs: Array, alpha: float) -> tuple[float, float, float]:
    """(low, high, p): delta is rejected when it lies in no more than alpha of the spans, the identity's included."""
    p = float((1 + np.count_nonzero((lows <= 0) & (highs >= 0))) / (1 + len(lows)))
    allowed = int(alpha * (1 + len(lows)) + 1e-9)
    if allowed == 0:
        return -np.inf, np.inf, p
    return float(np.partition(lows, allowed - 1)[allowed - 1]), float(np.partition(highs, -allowed)[-allowed]), p


def _bootstrap_t(sums: Array, sizes: Array, alpha: float, seed: int, resamples: int) -> Interval:
    """(half width, two-sided p) of the symmetric bootstrap-t; the half width is inf where the tail has no bound."""
    count, n, mean = len(sums), sizes.sum(), sums.sum() / sizes.sum()
    residuals, floor = sums - mean * sizes, 1e-12 * float(np.abs(sums).max())
    error = float(np.sqrt(_variance(residuals, n)))
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
        scaled = np.abs(shift) * amount / np.sqrt(np.where(known, variance, 1.0))
        ratios.append(np.where(known, scaled, np.where(np.abs(shift) > floor, np.inf, 0.0)))
    ratio, allowed = np.concatenate(ratios), int(alpha * (resamples + 1) + 1e-9)
    p = float((1 + np.count_nonzero(ratio >= abs(mean) / error)) / (resamples + 1))
    return float(error * np.partition(ratio, -allowed)[-allowed]) if allowed else np.inf, p


def _verdict(mean: float, ends: Interval | None, margin: float | None, higher: bool) -> tuple[Verdict, float]:
    """The verdict, and the half width that would have decided: to leave zero, or to fit within ±margin."""
    if margin is not None and not 0 < margin < np.inf:
        raise ValueError(f"margin is {margin}: a positive number in the unit of the values is needed")
    effect = abs(mean) if margin is None else max(abs(mean), margin - abs(mean))
    if ends and margin is not None and -margin <= ends[0] and ends[1] <= margin:
        return "no difference within", effect
    if ends and (ends[0] > 0 or ends[1] < 0):
        return "better" if (ends[0] > 0) == higher else "worse", effect
    return "undecided", effect


def _finite(values: ArrayLike, name: str) -> Array:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}: a flat list with at least one number is needed")
    array = array if array.dtype.kind in "bif" else np.asarray(values, dtype=object)  # a word makes all entries words
    for index, item in enumerate(array.tolist()):
        if not isinstance(item, int | float | np.number) or not math.isfinite(item):
            raise ValueError(f"{name}[{index}] is {item!r}: every entry must be a finite number")
    return array.astype(np.float64)


def _codes(clusters: Clusters, length: int, name: str) -> NDArray[np.intp]:
    """Labels as integers 0, 1, ... in order of first appearance."""
    labels = list(clusters)
    if len(labels) != length or length == 0:
        raise ValueError(f"{name}: found {length}, clusters: found {len(labels)}: one label each, and at least one")
    for index, label in enumerate(labels):
        if label is None or label != label:
            raise ValueError(f"clusters[{index}] is {label}: every question needs the label of its cluster")
    known = {label: code for code, label in enumerate(dict.fromkeys(labels))}
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


def _alpha(level: float, name: str = "level") -> float:
    if not 0.5 <= level < 1:
        raise ValueError(f"{name} is {level}: a probability in [0.5, 1) is needed, such as 0.95")
    return 1 - level


def _z(power: float, level: float) -> float:
    return -NormalDist().inv_cdf(_alpha(level) / 2) - NormalDist().inv_cdf(_alpha(power, "power"))


def _variance(residual_sums: NDArray[Any], n: float) -> float:
    """Cluster-robust variance of a mean over n: G / (G - 1) sum_g r_g^2 / n^2 (Liang & Zeger 1986)."""
    if len(residual_sums) < 2:
        raise ValueError("clusters: found 1 distinct label: at least 2 are needed")
    return float(len(residual_sums) / (len(residual_sums) - 1) * (residual_sums @ residual_sums) / n**2)
