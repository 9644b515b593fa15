"""Record what LoftQ's own code makes of a matrix: the oracle of `loftq`.

    git clone https://github.com/yxli2123/LoftQ && python scripts/make_loftq_fixture.py LoftQ

writes tests/fixtures/loftq.json: quantised weights and low-rank products of every turn, in float32. Weights come from a
formula, so that the fixture holds results only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from _fixture import revision, wave, write

SHAPE = (8, 16)
CASES = [("nf", "normal_float", 4, 3), ("nf", "normal_float", 2, 3), ("nf", "normal_float", 3, 2), ("uniform", "uniform", 4, 3),
         ("uniform", "uniform", 2, 2)]  # our quantiser, its, bits, turns
RANK = 3


def weight() -> torch.Tensor:
    """A wave, with noise by a second one of its squares."""
    at = torch.arange(SHAPE[0] * SHAPE[1], dtype=torch.float64).view(SHAPE)
    return (wave(*SHAPE).double() + 0.3 * torch.sin(0.013 * at * at)).float()


def record(ours: str, theirs: str, bits: int, turns: int) -> dict:
    """`quant_first_iter` turn by turn."""
    from utils import quant_first_iter

    low, right, found = 0, 0, []
    for _ in range(turns):
        _, low, right, dense, left = quant_first_iter(weight(), low, right, RANK, bits, theirs)
        found.append({"dense": dense.flatten().tolist(), "product": (low @ right).flatten().tolist(),
                      "left": float(left.norm())})
    return {"quant": ours, "bits": bits, "turns": found}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(sys.argv[1]) / "glue"))
    records = [record(*case) for case in CASES]
    write("loftq", __file__, {"yxli2123/LoftQ": revision(sys.argv[1])}, shape=SHAPE, rank=RANK, records=records)
    print(f"{len(records)} cases")
