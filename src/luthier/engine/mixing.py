"""Several data sets in one task, drawn in given proportions.

Which source the n-th row of a training comes from is decided by a sequence without luck: after any n draws each source
has had its share of n to within one row, and exactly its share after each period. Within a source rows come in a new
order each time all of them have been had, so a small source goes round often and a large one seldom. Everything is a
pure function of (seed, step); ranks take slices of it.

Source of the sequence: Tijdeman 1980, "The chairman assignment problem" (deviation at most 1 - 1/(2k - 2) of k).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from math import lcm

import numpy as np

from luthier.core.rng import Rng, epoch_order, rank_share

# Proportions that no period of so many rows can hold are rounded to it.
LONGEST_PERIOD = 10_000


class Mixture:
    """Sources by name with their number of rows and weight; rows are numbered through, source after source.

    temperature: shares are weight^(1 / temperature), normalised; above 1 they become more equal.
    """

    def __init__(self, rows: Mapping[str, int], weights: Mapping[str, float], temperature: float = 1.0) -> None:
        self.names = list(rows)
        self.rows = [rows[n] for n in self.names]
        self.first = [sum(self.rows[:i]) for i in range(len(self.rows))]
        self.parts = _whole([weights[n] for n in self.names], temperature)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each source in what is drawn."""
        return {n: p / sum(self.parts) for n, p in zip(self.names, self.parts, strict=True)}

    @cached_property
    def period(self) -> list[int]:
        """The source of each draw of one period."""
        return chairmen(self.parts)

    @cached_property
    def _had(self) -> np.ndarray:
        """[draws + 1, sources]: how many draws of a period each source has had before each of its draws."""
        taken = np.zeros((len(self.period) + 1, len(self.parts)), dtype=np.int64)
        taken[np.arange(1, len(self.period) + 1), self.period] = 1
        return taken.cumsum(0)

    def drawn(self, draws: int) -> list[int]:
        """How many of the first `draws` draws each source has had."""
        periods, rest = divmod(draws, len(self.period))
        return [periods * p + int(h) for p, h in zip(self.parts, self._had[rest], strict=True)]

    def rows_at(self, rng: Rng, step: int, batch: int, rank: int = 0, ranks: int = 1) -> np.ndarray:
        """Row numbers of one rank at one step: pure in (seed, step). Every batch is full."""
        had, found = self.drawn(step * batch), []
        orders: dict[tuple[int, int], np.ndarray] = {}
        for draw in range(step * batch, (step + 1) * batch):
            source = self.period[draw % len(self.period)]
            epoch, place = divmod(had[source], self.rows[source])
            if (source, epoch) not in orders:
                orders[source, epoch] = epoch_order(rng.within(self.names[source]), epoch, self.rows[source])
            found.append(self.first[source] + int(orders[source, epoch][place]))
            had[source] += 1
        return rank_share(np.array(found), rank, ranks)

    def report(self, draws: int) -> dict[str, dict[str, float]]:
        """Rows, share and epochs of each source after so many draws."""
        return {n: {"rows": r, "share": round(self.shares[n], 6), "epochs": round(d / r, 4)}
                for n, r, d in zip(self.names, self.rows, self.drawn(draws), strict=True)}


def chairmen(parts: Sequence[int]) -> list[int]:
    """Numbers 0 to k - 1 in the proportions of `parts`, one period of sum(parts), each prefix within one of its share.

    At place t the number is chosen, among those that are due (share x t - had >= 1 / (2k - 2)), whose next turn is the
    most urgent. All arithmetic is in whole numbers.
    """
    total, k = sum(parts), len(parts)
    if k == 1:
        return [0] * total
    had, found = [0] * k, []
    for t in range(1, total + 1):
        owed = [(2 * k - 2) * (p * t - total * h) for p, h in zip(parts, had, strict=True)]
        due = [i for i in range(k) if owed[i] >= total]
        found.append(min(due, key=lambda i: (Fraction((2 * k - 3) * total - owed[i], parts[i]), i)))
        had[found[-1]] += 1
    return found


def _whole(weights: Sequence[float], temperature: float) -> list[int]:
    """Weights as whole numbers in the same proportions, rounded where their period would be too long."""
    if temperature == 1:
        exact = [Fraction(str(w)) for w in weights]
        scale = lcm(*(f.denominator for f in exact))
        parts = [int(f * scale) for f in exact]
        common = int(np.gcd.reduce(parts))
        if sum(parts) // common <= LONGEST_PERIOD:
            return [p // common for p in parts]
    shares = [w ** (1 / temperature) for w in weights]
    return [max(1, round(LONGEST_PERIOD * s / sum(shares))) for s in shares]
