"""Source and target drops of a matrix of scores s[S, T]: trained on domain S, tested on domain T."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Case = Literal["classic", "observed", "unobserved", "none"]


@dataclass(frozen=True)
class DomainShift:
    """Drops [domains, domains] of a matrix of scores, rows the training domain; where lower is better, signs turn.

    SD(S, T) = s[S, S] - s[S, T], TD(S, T) = s[T, T] - s[S, T]. Their means over all ordered pairs are equal.
    """

    scores: Array
    names: tuple[str, ...]
    higher_is_better: bool = True

    @classmethod
    def of(cls, scores: ArrayLike, names: Sequence[str] = (), higher_is_better: bool = True) -> DomainShift:
        """Raises ValueError for fewer than two domains, or a matrix that is not square and finite."""
        table = np.asarray(scores, dtype=np.float64)
        if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 2 or not np.isfinite(table).all():
            raise ValueError(f"scores have shape {table.shape}: a finite square matrix of two domains or more is needed")
        return cls(table, tuple(names) or tuple(map(str, range(1, len(table) + 1))), higher_is_better)

    @property
    def source_drop(self) -> Array:
        """[S, T] what is lost beside the score at home."""
        drop = np.diag(self.scores)[:, None] - self.scores
        return drop if self.higher_is_better else -drop

    @property
    def target_drop(self) -> Array:
        """[S, T] what is lost beside a model that was trained on the target."""
        drop = np.diag(self.scores)[None, :] - self.scores
        return drop if self.higher_is_better else -drop

    def case(self, source: int, target: int) -> Case:
        """classic: both drops; observed: the target is harder, no loss; unobserved: an easier target hides one; none."""
        seen, real = self.source_drop[source, target] > 0, self.target_drop[source, target] > 0
        return "classic" if seen and real else "observed" if seen else "unobserved" if real else "none"

    def report(self) -> dict[str, float | dict[str, int]]:
        """Means, standard deviations and largest drops over ordered pairs, relative drops, and how many pairs of each case."""
        off = ~np.eye(len(self.scores), dtype=bool)
        home = np.broadcast_to(np.diag(self.scores)[:, None], self.scores.shape)
        seen, real = self.source_drop[off], self.target_drop[off]
        cases = [self.case(s, t) for s, t in zip(*np.nonzero(off), strict=True)]
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = [float(np.mean(d / h)) for d, h in ((seen, home[off]), (real, home.T[off]))]
        return {"mean_source_drop": float(seen.mean()), "mean_target_drop": float(real.mean()),
                "spread_source_drop": float(seen.std()), "spread_target_drop": float(real.std()),
                "worst_source_drop": float(seen.max()), "worst_target_drop": float(real.max()),
                "relative_source_drop": relative[0], "relative_target_drop": relative[1],
                "cases": {name: cases.count(name) for name in ("classic", "observed", "unobserved", "none")}}


def apart(left: ArrayLike, right: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Welch's interval of mean(left) - mean(right) for two groups of rows that are not paired."""
    from scipy.stats import t

    a, b = (np.asarray(x, dtype=np.float64) for x in (left, right))
    va, vb = (float(x.var(ddof=1)) / len(x) for x in (a, b))
    difference, error = float(a.mean() - b.mean()), va + vb
    if error == 0:
        return difference, difference
    freedom = error ** 2 / (va ** 2 / (len(a) - 1) + vb ** 2 / (len(b) - 1))
    half = float(t.ppf((1 + level) / 2, freedom)) * error ** 0.5
    return difference - half, difference + half
