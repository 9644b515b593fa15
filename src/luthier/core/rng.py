"""Counter-based randomness.

A random number is a pure function of (seed, name, item): nothing is drawn from a shared stream, so resuming,
changing the batch size or adding a rank can't shift anybody else's numbers. Philox (Salmon et al. 2011) is a
counter-based generator, keyed here by a SHA-256 of the three.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rng:
    """Derives generators from one run's seed. `rng("order", epoch)` is the same wherever it is called."""

    seed: int
    scope: str = ""

    def key(self, name: str, item: int | str = 0) -> int:
        """A 63-bit integer for libraries that seed themselves (`torch.manual_seed`)."""
        text = f"{self.seed}\x1f{self.scope}\x1f{name}\x1f{item}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def __call__(self, name: str, item: int | str = 0) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.key(name, item)))

    def within(self, scope: str) -> Rng:
        """The same seed with a longer scope: what a step or a component gets, so that equal names don't collide."""
        return Rng(self.seed, f"{self.scope}/{scope}")


def epoch_order(rng: Rng, epoch: int, rows: int) -> np.ndarray:
    """Order of `rows` row numbers in `epoch`, shape [rows]: a pure function of (seed, epoch)."""
    return rng("order", epoch).permutation(rows)


def rank_share(rows: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """The rows of one global batch that `rank` works on; the shares of all ranks are the batch, each row once."""
    return rows[rank::ranks]
