"""Shares and how they change: Wilson's interval, McNemar's exact test, Newcombe's paired interval.

For yes-or-no answers of which each is independent of the others, such as a prompt that is refused or not. Unlike intervals
of a mean, these do not collapse where all answers are equal: no refusal lost in 40 prompts says "at most 9 %", not "none".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

Interval = tuple[float, float]


def wilson(hits: int, n: int, level: float = 0.95) -> Interval:
    """Score interval of a share (Wilson 1927): the p with |hits/n - p| <= z sqrt(p (1 - p) / n)."""
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"{hits} of {n}: a number of hits from 0 to n, and n of at least 1, are needed")
    z2, share = _z(level) ** 2, hits / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At the ends the interval reaches them exactly; the rounding of two equal terms would not.
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == n else middle + half)


@dataclass(frozen=True)
class Paired:
    """Two answers to the same questions: yes to both, lost (yes, then no), won (no, then yes), no to both."""

    both: int
    lost: int
    won: int
    neither: int

    @classmethod
    def of(cls, before: Sequence[bool], after: Sequence[bool]) -> Paired:
        """Counted from the answers, one each per question."""
        pairs = [(bool(a), bool(b)) for a, b in zip(before, after, strict=True)]
        return cls(*(pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))))

    @property
    def n(self) -> int:
        """How many questions."""
        return self.both + self.lost + self.won + self.neither

    @property
    def drop(self) -> float:
        """Share before minus share after."""
        return (self.lost - self.won) / self.n

    def mcnemar(self) -> float:
        """Two-sided exact p of "as many are lost as won" (McNemar 1947): lost ~ Binomial(lost + won, 1/2)."""
        changed, fewer = self.lost + self.won, min(self.lost, self.won)
        tail = sum(math.comb(changed, k) for k in range(fewer + 1))
        return min(1.0, 2 * tail / float(2**changed))

    def interval(self, level: float = 0.95) -> Interval:
        """Interval of `drop` from two Wilson intervals and their correlation (Newcombe 1998, method 10)."""
        yes = (self.both + self.lost, self.both + self.won)
        (p1, p2), ((l1, u1), (l2, u2)) = (y / self.n for y in yes), (wilson(y, self.n, level) for y in yes)
        phi, drop = self._correlation(), self.drop
        down = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
        up = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
        return drop - math.sqrt(max(0.0, down)), drop + math.sqrt(max(0.0, up))

    def needed(self, limit: float, level: float = 0.95) -> int | None:
        """About how many more questions, answered like these, take the interval off `limit` or off zero.

        None when no number would: the drop lies at the limit itself.
        """
        for times in (1.25, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64):
            grown = Paired(*(round(times * c) for c in (self.both, self.lost, self.won, self.neither)))
            low, high = grown.interval(level)
            if high < limit or (low > 0 and grown.drop > limit):
                return grown.n - self.n
        return None

    def _correlation(self) -> float:
        """The phi coefficient with Newcombe's continuity correction; 0 where it is not defined."""
        a, b, c, d = self.both, self.lost, self.won, self.neither
        scale = math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
        cross = a * d - b * c
        return (max(cross - self.n / 2, 0) if cross > 0 else cross) / scale if scale else 0.0


def _z(level: float) -> float:
    if not 0.5 <= level < 1:
        raise ValueError(f"level is {level}: a probability in [0.5, 1) is needed, such as 0.95")
    return -NormalDist().inv_cdf((1 - level) / 2)
