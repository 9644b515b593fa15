"""N-grams of words as `bleu` and `code-bleu` count them: matches, clipped at what the references hold, and their number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


def grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n words occurs."""
    return Counter(tuple(words[i:i + n]) for i in range(len(words) - n + 1))


@dataclass(frozen=True)
class Matched:
    """Of one text: `matches[n-1]` of its `totals[n-1]` n-grams are in a reference; its length and that of the nearest one."""

    matches: tuple[int, ...]
    totals: tuple[int, ...]
    length: int
    wanted: int

    def penalty(self) -> float:
        """The brevity penalty: 1 from the reference's length on, else exp(1 - r / c)."""
        return penalty(self.length, self.wanted)


def matched(said: Sequence[str], references: Sequence[Sequence[str]], order: int) -> Matched:
    """A text against its references: an n-gram counts as often as the reference that has it most often; the reference whose
    length is nearest, the shorter of two, says how long the text should be."""
    matches, totals = [], []
    for n in range(1, order + 1):
        mine, most = grams(said, n), Counter[tuple[str, ...]]()
        for reference in references:
            most |= grams(reference, n)
        matches.append(sum((mine & most).values()))
        totals.append(sum(mine.values()))
    wanted = min((len(r) for r in references), key=lambda length: (abs(length - len(said)), length))
    return Matched(tuple(matches), tuple(totals), len(said), wanted)


def penalty(length: int, wanted: int) -> float:
    """exp(1 - r / c) for a text of c words that should have r, and 1 where c is at least r."""
    if length >= wanted:
        return 1.0
    return math.exp(1 - wanted / length) if length else 0.0


def geometric(precisions: Sequence[float]) -> float:
    """The geometric mean; 0 where one of them is 0, or there are none."""
    if not precisions or min(precisions) <= 0:
        return 0.0
    return math.exp(sum(map(math.log, precisions)) / len(precisions))
