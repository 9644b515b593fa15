"""Power: what a comparison of this size can show, and what it can't."""

from __future__ import annotations

import math
from collections.abc import Sequence

from numpy.typing import ArrayLike

from luthier.engine import statistics


def smallest_visible(
    differences_by_seed: Sequence[tuple[ArrayLike, statistics.Clusters]], power: float = 0.8, level: float = 0.95
) -> float | None:
    """Smallest true difference that data like these show with probability `power`; None where these data can't say.

    `differences_by_seed`: as for `statistics.hierarchical`. From 3 seeds the test is that one, whose |difference| / error is
    Student's t, non-central by effect / error; with fewer it is over clusters alone, with C - 1 degrees of freedom. The
    error is that of these data: where 3 seeds differ more than questions do, it is itself known to half its size only.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct
    from scipy.stats import t as student

    if not 0 < power < 1 or not 0.5 <= level < 1:
        raise ValueError(f"power is {power} and level is {level}: probabilities are needed, such as 0.8 and 0.95")
    _, _, seeds, count, by_seed, by_cluster = statistics.two_ways(differences_by_seed)
    if seeds < statistics.FEWEST_SEEDS:
        by_seed = 0.0
    if count < statistics.FEWEST_CLUSTERS or not by_seed + by_cluster:
        return None
    error = math.sqrt(by_seed + by_cluster)
    freedom = statistics.satterthwaite(by_seed, seeds, by_cluster, count)
    bound = float(student.ppf((1 + level) / 2, freedom))

    def missing(shift: float) -> float:
        return float(nct.sf(bound, freedom, shift) - power)

    return error * float(brentq(missing, 0.0, 3 * bound + 20, xtol=1e-6))
