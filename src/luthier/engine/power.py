"""Power: what a comparison of this size can show, and what it can't."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luthier.engine import statistics
from luthier.engine.two_way import two_way_half


def smallest_visible(
    differences_by_seed: Sequence[tuple[ArrayLike, statistics.Clusters]], power: float = 0.8, level: float = 0.95
) -> float | None:
    """Smallest true difference that data like these show with probability `power`; None where these data can't say.

    `differences_by_seed`: as for `statistics.hierarchical`, which is the test from 3 seeds on; with fewer it is Student's t
    over clusters, and seeds are no source of chance. The probability is that of a normal mean against a half width whose
    variances are chi-squared, averaged over their quantiles. The true variances are taken to be those of these data: where
    3 seeds differ more than questions do, they are known to half their size only.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr

    if not 0 < power < 1 or not 0.5 <= level < 1:
        raise ValueError(f"power is {power} and level is {level}: probabilities are needed, such as 0.8 and 0.95")
    _, _, seeds, count, by_seed, by_cluster = statistics.two_ways(differences_by_seed)
    if seeds < statistics.FEWEST_SEEDS:
        seeds, by_seed = 1, 0.0
    error = math.sqrt(by_seed + by_cluster)
    if count < statistics.FEWEST_CLUSTERS or not error:
        return None
    spread = np.multiply.outer(by_seed * _quantiles(seeds - 1), np.ones(_GRID))
    half = two_way_half(spread, seeds, by_cluster * _quantiles(count - 1), count, 1 - level) / error

    def missing(shift: float) -> float:
        return float(ndtr(shift - half).mean() - power)

    return error * float(brentq(missing, 0.0, float(half.max()) + 10, xtol=1e-6))


_GRID = 48


def _quantiles(freedom: int) -> NDArray[np.float64]:
    """Chi-squared over its degrees of freedom, at the middles of `_GRID` equal probabilities."""
    from scipy.special import gammaincinv

    if not freedom:
        return np.ones(_GRID)
    return np.asarray(gammaincinv(freedom / 2, (np.arange(_GRID) + 0.5) / _GRID) * 2 / freedom)
