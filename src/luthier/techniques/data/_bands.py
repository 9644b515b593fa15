"""Locality-sensitive hashing in arrays: names of sketches that agree in at least one band.

The same proposals as a table of sets a band, in about 12 bytes a band and text instead of some 400: chains through
arrays of numbers, and nothing else is kept.
"""

from __future__ import annotations

import numpy as np

_START = 1024


class Bands:
    """Texts by number, found by the hash of each band of their MinHash."""

    def __init__(self, bands: int, rows: int) -> None:
        self.bands, self.rows, self.count = bands, rows, 0
        self._which = np.arange(bands)
        self._hashes = np.zeros((_START, bands), dtype=np.uint64)
        self._next = np.full((_START, bands), -1, dtype=np.int32)
        self._heads = np.full((bands, 2 * _START), -1, dtype=np.int32)

    def hashes(self, sketch: np.ndarray) -> np.ndarray:
        """A hash a band, uint64 [bands], of a MinHash [permutations]."""
        parts = sketch[:self.bands * self.rows].astype(np.uint64).reshape(self.bands, self.rows)
        made = np.zeros(self.bands, dtype=np.uint64)
        for column in range(self.rows):
            made = (made ^ parts[:, column]) * np.uint64(0x9E3779B97F4A7C15)
            made ^= made >> np.uint64(29)
        return made

    def near(self, hashes: np.ndarray) -> list[int]:
        """Numbers of the texts that have at least one of these hashes in its band, in order."""
        found: set[int] = set()
        at = self._heads[self._which, self._slot(hashes)]
        while (open_ := at >= 0).any():
            bands, texts = self._which[open_], at[open_]
            found.update(texts[self._hashes[texts, bands] == hashes[open_]].tolist())
            at = np.where(open_, self._next[np.where(open_, at, 0), self._which], -1)
        return sorted(found)

    def add(self, hashes: np.ndarray) -> None:
        """Store the next text."""
        if self.count == len(self._hashes):
            self._grow()
        self._link(self.count, hashes)
        self.count += 1

    def _link(self, number: int, hashes: np.ndarray) -> None:
        slot = self._slot(hashes)
        self._hashes[number] = hashes
        self._next[number] = self._heads[self._which, slot]
        self._heads[self._which, slot] = number

    def _slot(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes % np.uint64(self._heads.shape[1])).astype(np.int64)

    def _grow(self) -> None:
        size = 2 * len(self._hashes)
        old, self._hashes = self._hashes, np.zeros((size, self.bands), dtype=np.uint64)
        self._next = np.full((size, self.bands), -1, dtype=np.int32)
        self._heads = np.full((self.bands, 2 * size), -1, dtype=np.int32)
        for number in range(len(old)):
            self._link(number, old[number])
