"""Two groups told apart by a score: area under the ROC curve with DeLong's interval, FPR95, and average precision.

Scores are higher for the positive group (here: in-distribution).
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """P(positive > negative) + P(equal) / 2 over all pairs."""
    return float(_placements(positive, negative)[0].mean())


def auroc_interval(positive: ArrayLike, negative: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """DeLong's interval (1988): area ± z sqrt(var of placements of each group / its size), within [0, 1]."""
    own, other = _placements(positive, negative)
    half = _z(level) * float(np.sqrt(_variance(own) + _variance(other)))
    return max(0.0, float(own.mean()) - half), min(1.0, float(own.mean()) + half)


def auroc_change(before: tuple[ArrayLike, ArrayLike], after: tuple[ArrayLike, ArrayLike], level: float = 0.95
                 ) -> tuple[float, tuple[float, float]]:
    """Area after - area before of two scores of the same rows, with DeLong's paired interval."""
    (own0, other0), (own1, other1) = _placements(*before), _placements(*after)
    change = float(own1.mean() - own0.mean())
    half = _z(level) * float(np.sqrt(_variance(own1 - own0) + _variance(other1 - other0)))
    return change, (change - half, change + half)


def threshold(positive: ArrayLike, keep: float = 0.95) -> float:
    """The highest score that at least the share `keep` of the positives reach."""
    ordered = np.sort(np.asarray(positive, dtype=np.float64))[::-1]
    return float(ordered[int(np.ceil(keep * len(ordered) - 1e-9)) - 1])


def false_positive_rate(positive: ArrayLike, negative: ArrayLike, keep: float = 0.95) -> float:
    """Share of negatives that are accepted where the share `keep` of the positives is (FPR95)."""
    return float((np.asarray(negative, dtype=np.float64) >= threshold(positive, keep)).mean())


def average_precision(positive: ArrayLike, negative: ArrayLike) -> float:
    """Sum over thresholds of (recall gained) x precision; equal scores are one threshold."""
    pos, neg = (np.asarray(a, dtype=np.float64) for a in (positive, negative))
    total, before = 0.0, 0
    for cut in np.unique(pos)[::-1]:
        hits = int((pos >= cut).sum())
        total += (hits - before) / len(pos) * hits / (hits + int((neg >= cut).sum()))
        before = hits
    return total


def _placements(positive: ArrayLike, negative: ArrayLike) -> tuple[Array, Array]:
    """Of each positive the share of negatives below it, of each negative the share of positives above it; ties half."""
    pos, neg = (np.asarray(a, dtype=np.float64) for a in (positive, negative))
    if not len(pos) or not len(neg):
        raise ValueError("both groups are needed")
    low, high = (np.searchsorted(np.sort(neg), pos, side=s) for s in ("left", "right"))
    below, upto = (np.searchsorted(np.sort(pos), neg, side=s) for s in ("left", "right"))
    return (low + high) / (2 * len(neg)), 1 - (below + upto) / (2 * len(pos))


def _variance(values: Any) -> float:
    return float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0


def _z(level: float) -> float:
    return -NormalDist().inv_cdf((1 - level) / 2)
