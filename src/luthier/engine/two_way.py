"""An interval with two sources of chance, seeds and clusters: its half width, its p value, and what more seeds would do.

Each source is held to the t of its own degrees of freedom; see `statistics.hierarchical`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def two_way_half(by_seed: Any, seeds: int, by_cluster: Any, clusters: int, alpha: float) -> Any:
    """Half width of `hierarchical` at 1 - alpha, of numbers or arrays of variances; without seeds to speak of, clusters'."""
    from scipy.special import stdtrit  # scipy is slow to import, and wanted here alone

    first = float(stdtrit(seeds - 1, 1 - alpha / 2)) if seeds > 1 else 0.0
    return np.sqrt(first**2 * by_seed + float(stdtrit(clusters - 1, 1 - alpha / 2)) ** 2 * by_cluster)


def seeds_to(effect: float, by_seed: float, seeds: int, by_cluster: float, clusters: int, alpha: float, power: float = 0.8
              ) -> int | None:
    """How many more seeds until half width and the deviate of `power` fit into the effect; None beyond 1,000."""
    from scipy.special import ndtri

    for more in range(1, 1_001):
        spread = by_seed * seeds / (seeds + more)
        half = float(two_way_half(spread, seeds + more, by_cluster, clusters, alpha))
        if half + float(ndtri(power)) * math.sqrt(spread + by_cluster) <= effect:
            return more
    return None


def two_way_p(mean: float, by_seed: float, seeds: int, by_cluster: float, clusters: int) -> float:
    """The alpha at which the interval just reaches 0."""
    from scipy.optimize import brentq

    if mean == 0 or not by_seed + by_cluster:
        return float(mean == 0)
    lowest = 1e-15

    def beyond(logarithm: float) -> float:
        return float(two_way_half(by_seed, seeds, by_cluster, clusters, math.exp(logarithm)) - abs(mean))

    return math.exp(brentq(beyond, math.log(lowest), 0.0, xtol=1e-10)) if beyond(math.log(lowest)) > 0 else lowest
