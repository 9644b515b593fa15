"""What came before in a file of any length: hashes and numbers in flat arrays, 16 bytes a row, no text."""

from __future__ import annotations

import hashlib
from array import array


class Repeats:
    """Keys, each with a number below 2^64. Two keys are one when their 64-bit hashes are (1 in 10^7 for a million rows)."""

    def __init__(self) -> None:
        self._keys, self._numbers = array("Q"), array("Q")

    def add(self, key: bytes, number: int) -> None:
        """Note a key."""
        self._keys.append(hashed(key))
        self._numbers.append(number)

    def pairs(self) -> list[tuple[int, int]]:
        """(number, number of the first with the same key) of every key that came before, in the order of adding."""
        import numpy as np

        if not self._keys:
            return []
        keys, numbers = np.frombuffer(self._keys, dtype=np.uint64), np.frombuffer(self._numbers, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.concatenate([[True], np.diff(keys[order]) != 0]))
        first = np.repeat(order[starts], np.diff([*starts, len(order)]))
        again = np.flatnonzero(first != order)
        again = again[np.argsort(order[again])]
        return [(int(numbers[order[i]]), int(numbers[first[i]])) for i in again]


def hashed(key: bytes) -> int:
    """64 bits of a key's hash."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
