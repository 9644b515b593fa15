"""Invented words: pronounceable, distinct, and the same for every call with the same generator."""

from __future__ import annotations

import numpy as np

_ONSETS = "b br d dr f fl g gr h j k kl l m n p pl r s st t tr v w z".split()
_VOWELS = "a e i o u ai ei ou".split()
_ENDS = "l m n r s t k nd rt".split()


def words(rng: np.random.Generator, count: int, syllables: int = 2, taken: frozenset[str] = frozenset()) -> list[str]:
    """`count` distinct words with a capital letter, none of them in `taken`."""
    found: dict[str, None] = {}
    while len(found) < count:
        parts = [str(rng.choice(_ONSETS)) + str(rng.choice(_VOWELS)) for _ in range(syllables)]
        word = ("".join(parts) + str(rng.choice(_ENDS))).capitalize()
        if word not in taken:
            found[word] = None
    return list(found)
