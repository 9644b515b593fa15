"""Numbers of an answer matrix: the same items asked in several ways. Rows are phrasings, columns are items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Parts:
    """Variance components of one answer's score: of phrasings, of items, and what is left (their interplay and chance)."""

    phrasings: float
    items: float
    rest: float


def variance_parts(scores: ArrayLike) -> Parts:
    """Components of score[t, i] = mean + phrasing_t + item_i + rest_ti by expected mean squares (two-way random effects).

    With T phrasings and I items: phrasings = (MS_t - MS_e) / I, items = (MS_i - MS_e) / T, rest = MS_e, none below 0.

    Raises:
        ValueError: fewer than two rows or columns.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < 2:
        raise ValueError(f"scores have shape {table.shape}: at least 2 phrasings and 2 items are needed")
    count_t, count_i = table.shape
    mean, rows, columns = table.mean(), table.mean(1), table.mean(0)
    residual = table - rows[:, None] - columns[None, :] + mean
    ms_t = count_i * float(((rows - mean) ** 2).sum()) / (count_t - 1)
    ms_i = count_t * float(((columns - mean) ** 2).sum()) / (count_i - 1)
    ms_e = float((residual ** 2).sum()) / ((count_t - 1) * (count_i - 1))
    return Parts(max(0.0, (ms_t - ms_e) / count_i), max(0.0, (ms_i - ms_e) / count_t), ms_e)


def consistency(answers: Sequence[Sequence[Hashable]]) -> float:
    """Share of items that get one and the same answer under every phrasing."""
    columns = list(zip(*answers, strict=True))
    return sum(len(set(c)) == 1 for c in columns) / len(columns)


def fleiss_kappa(answers: Sequence[Sequence[Hashable]]) -> float:
    """(P - P_e) / (1 - P_e), phrasings being the raters (Fleiss 1971); 1 where all answers of all items are one."""
    raters, items = len(answers), list(zip(*answers, strict=True))
    agreed = sum(sum(n * (n - 1) for n in Counter(c).values()) for c in items) / (len(items) * raters * (raters - 1))
    total = Counter(a for c in items for a in c)
    chance = sum((n / (raters * len(items))) ** 2 for n in total.values())
    return 1.0 if chance == 1 else (agreed - chance) / (1 - chance)


def micro_f1(right: Sequence[str], said: Sequence[str | None], none: str = "") -> float:
    """F1 over all items with one class left out: answers and labels `none` are neither found nor wanted; None is no answer."""
    found = sum(a is not None and a != none for a in said)
    wanted = sum(r != none for r in right)
    both = sum(r == a and r != none for r, a in zip(right, said, strict=True))
    return 2 * both / (found + wanted) if both else 0.0


def spread(means: Sequence[float]) -> float:
    """Standard deviation over phrasings (n - 1); 0 for one."""
    return float(np.std(means, ddof=1)) if len(means) > 1 else 0.0
