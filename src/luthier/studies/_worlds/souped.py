"""souped: what is made of several tunes of one base, chosen on one part of a pool of rows and tested on the other.

For each of `splits` divisions of the subset `pool` in halves; the subset `strange` is asked each time. `how`:

    best       the one that is best on the first half         ensemble   the mean of all their probabilities
    uniform, greedy, learned   soups by `model-soup`           theory     see below; `chance` the same with values shuffled

`theory` asks of neighbouring pairs of tunes and of mixtures a whether what weights averaged lose against logits averaged is
a (1 - a) / 2 · (E Var_Y[f_Y(x; W_2) - f_Y(x; W_1)] - L''(a)), Y drawn from the averaged model: for every two of these points,
1 where both order them alike. L'' is a second difference of step `STEP`. (Wortsman et al. 2022, section 4.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact
from luthier.core.example import Example
from luthier.core.rng import Rng
from luthier.studies._worlds._soups import Array, Asking, Divided, Line, only

MIXTURES, STEP = (0.25, 0.5, 0.75), 0.1


class Souped(Divided, name="souped"):
    """Answer with one of several tunes, their soup or their ensemble."""

    draws: ClassVar[str] = "souped"
    how: Literal["best", "uniform", "greedy", "learned", "ensemble", "theory", "chance"] = Field("greedy",
                                                                                                 description="what is made")
    pairs: int = Field(5, ge=1, description="pairs of tunes that the theory is asked of")

    def lines(self, asking: Asking, pool: Sequence[Example], strange: Sequence[Example]) -> list[Line]:
        """One record a row and division, or a pair of points."""
        if self.how in ("theory", "chance"):
            return self._theory(asking, pool)
        return super().lines(asking, pool, strange)

    def wanted(self, inputs: Mapping[str, Artifact]) -> int:
        """Of the theory one for every two points."""
        points = len(MIXTURES) * min(self.pairs, len(self.tunes(inputs)) - 1)
        return points * (points - 1) // 2 if self.how in ("theory", "chance") else super().wanted(inputs)

    def said(self, asking: Asking, split: int, val: Sequence[Example], rows: Sequence[Example]) -> Array:
        """[rows, labels] of the chosen one, the soup or the ensemble."""
        if self.how != "ensemble":
            return asking.said(asking.shares(self.how, val, split), rows)
        count = len(asking.tunes)
        return np.mean([asking.said(only(i, count), rows) for i in range(count)], 0)

    def _theory(self, asking: Asking, rows: Sequence[Example]) -> list[Line]:
        count, points = len(asking.tunes), []
        for first in range(min(self.pairs, count - 1)):
            def logs(a: float, first: int = first) -> Array:
                shares = [0.0] * count
                shares[first], shares[first + 1] = 1 - a, a
                return np.log(np.maximum(asking.said(shares, rows), 1e-12))

            points += [(first, *_point(logs, a, asking.right(rows))) for a in MIXTURES]
        foretold = np.array([p[1] for p in points])
        if self.how == "chance":
            foretold = foretold[Rng(self.seed).within("souped")("chance").permutation(len(points))]
        return [{"id": f"{i}-{j}", "set": "points", "cluster": f"{points[i][0]}-{points[j][0]}", "metric": "agreement",
                 "value": float((foretold[i] - foretold[j]) * (points[i][2] - points[j][2]) > 0)}
                for i, j in combinations(range(len(points)), 2)]


def _point(logs: Any, a: float, right: Array) -> tuple[float, float]:
    """What the approximation says of soup loss minus ensemble loss, and what it is; from log-probabilities [rows, labels]."""
    one, two, mixed, below, above = (logs(t) for t in (0.0, 1.0, a, a - STEP, a + STEP))
    rows = np.arange(len(right))

    def loss(scores: Array) -> float:
        return float(np.mean(np.log(np.exp(scores).sum(1)) - scores[rows, right]))

    bend = (loss(above) - 2 * loss(mixed) + loss(below)) / STEP**2
    apart, chance = two - one, np.exp(mixed)
    spread = float(np.mean((chance * apart**2).sum(1) - (chance * apart).sum(1) ** 2))
    return a * (1 - a) / 2 * (spread - bend), loss(mixed) - loss((1 - a) * one + a * two)
