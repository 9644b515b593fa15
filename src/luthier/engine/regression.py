"""Least squares whose errors allow for clusters: points of one run depend on each other.

b = (X'X)^-1 X'y; with residuals u_c and rows X_c of cluster c the covariance is

    V = G/(G-1) · (n-1)/(n-k) · (X'X)^-1 (sum_c X_c'u_c u_c'X_c) (X'X)^-1

(Liang & Zeger 1986, with the small-sample factor of Stata and statsmodels), and intervals use Student's t with G - 1
degrees of freedom for G clusters.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Regression:
    """Coefficients [k] with their errors [k]; `clusters` is G, `fit` the share of the variance that is explained."""

    coefficients: NDArray[np.float64]
    errors: NDArray[np.float64]
    clusters: int
    fit: float

    def interval(self, term: int, level: float = 0.95) -> tuple[float, float]:
        """Interval of one coefficient."""
        from scipy.stats import t as student

        half = float(student.ppf((1 + level) / 2, self.clusters - 1)) * float(self.errors[term])
        return float(self.coefficients[term]) - half, float(self.coefficients[term]) + half

    def p(self, term: int) -> float:
        """Two-sided p value of "this coefficient is zero"."""
        from scipy.stats import t as student

        error = float(self.errors[term])
        if not error:
            return float(self.coefficients[term] == 0)
        return 2 * float(student.sf(abs(float(self.coefficients[term])) / error, self.clusters - 1))


def least_squares(y: ArrayLike, x: ArrayLike, clusters: Sequence[Hashable]) -> Regression:
    """`y` [n] on the columns of `x` [n, k]; a constant is a column of ones.

    Raises:
        ValueError: fewer points than columns and one, fewer than two clusters, or columns that depend on each other.
    """
    response, design = np.asarray(y, float), np.asarray(x, float)
    n, k = design.shape
    codes = np.unique(np.array([str(c) for c in clusters]), return_inverse=True)[1]
    count = int(codes.max()) + 1 if n else 0
    if n <= k or count < 2:
        raise ValueError(f"{n} points in {count} clusters: more than {k} points in 2 clusters or more are needed")
    if np.linalg.matrix_rank(design) < k:
        raise ValueError("the terms depend on each other: no coefficient of its own can be found for each")
    inverse = np.linalg.inv(design.T @ design)
    found = np.linalg.lstsq(design, response, rcond=None)[0]
    left = response - design @ found
    sums = np.zeros((count, k))
    np.add.at(sums, codes, design * left[:, None])
    spread = inverse @ (sums.T @ sums) @ inverse * count / (count - 1) * (n - 1) / (n - k)
    total = float(((response - response.mean()) ** 2).sum())
    return Regression(found, np.sqrt(np.clip(np.diag(spread), 0, None)), count,
                      1 - float(left @ left) / total if total else float("nan"))
