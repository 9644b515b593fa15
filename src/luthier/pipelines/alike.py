"""Scores that agree on every question: what they say about a difference, and what they can't say.

Where two arms score alike on all n questions, the interval of their difference is [0, 0], whatever n is: the sample has no
spread to show. What it does bound is how rare a disagreement is. If a share s of the C clusters would show one, none of C
shows it with probability (1 - s)^C, so that shares above s = 1 - (1 - level)^(1 / C) are excluded (the exact binomial bound
for no event; about 3 / C at 95 %, the "rule of three"). With scores in a range of width w, the difference is at most s w.

"No difference within the margin" is therefore kept only where s w fits within it; else the verdict is undecided, and the
number of clusters that would be needed follows from the same equation.
"""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
from numpy.typing import ArrayLike

from luthier.core.finding import Finding
from luthier.engine.statistics import Comparison


def alike(finding: Finding) -> bool:
    """Whether a comparison found the same score on every question."""
    asked = finding.extra.get("questions")
    return bool(asked) and finding.extra.get("alike") == asked


def count_alike(left: ArrayLike, right: ArrayLike) -> int:
    """On how many questions both score the same."""
    return int(np.sum(np.asarray(left) == np.asarray(right)))


def rarest(clusters: int, level: float) -> float:
    """The largest share of clusters that may show a difference though none of these did."""
    return 1 - (1 - level) ** (1 / clusters)


def settle(result: Comparison, left: ArrayLike, right: ArrayLike, level: float) -> Comparison:
    """The comparison with the verdict that scores which never differ support; any other comparison as it is.

    `left`, `right`: scores (questions,) as compared. The width of their range is taken to be 1, or the largest score where
    that is more.
    """
    margin = result.margin
    if margin is None or count_alike(left, right) < result.n or result.n == 0:
        return result
    width = max(1.0, float(np.max(np.abs(np.asarray(left)))))
    if rarest(result.clusters, level) * width <= margin:
        return result
    share = min(margin / width, 1 - 1e-9)
    clusters = math.ceil(math.log(1 - level) / math.log(1 - share) - 1e-9)
    needed = math.ceil(result.n / result.clusters * (clusters - result.clusters))
    kept = {f.name: getattr(result, f.name) for f in fields(result)}
    return Comparison(**{**kept, "verdict": "undecided", "needed": max(needed, 1)})
