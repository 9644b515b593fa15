"""Record how many intruders the code of the paper's authors counts: the oracle of `intruder-dimensions`.

    git clone https://github.com/reeceshuttle/intruder-dimensions && python scripts/make_intruders_fixture.py \\
        intruder-dimensions

writes tests/fixtures/intruders.json: counts by threshold for matrices that come from a formula. What the code imports for its
data need not be installed.
"""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from _fixture import revision, wave, write

SHAPES = [(24, 20), (16, 30)]
SIZES = (0.05, 1.0, 4.0)  # of the change of rank 2
THRESHOLDS = [n / 10 for n in range(1, 10)]
K = 10


def matrices(shape: tuple[int, int], size: float) -> list[torch.Tensor]:
    """The base, sin(0.013 i²) + the wave of shift 0; and with the product of waves [rows, 2] of shift 1, [2, columns] of 2."""
    at = torch.arange(shape[0] * shape[1], dtype=torch.float64).view(shape)
    base = (torch.sin(0.013 * at * at) + wave(*shape).double()).float()
    return [base, base + size * wave(shape[0], 2, shift=1.0, scale=1.0) @ wave(2, shape[1], shift=2.0, scale=1.0)]


def record(module: object, shape: tuple[int, int], size: float) -> dict:
    """One matrix."""
    base, tuned = (SimpleNamespace(state_dict=lambda w=w: {"layer.0.query.weight": w}) for w in matrices(shape, size))
    asked = SimpleNamespace(base_model="roberta-base", tune_layers="attn_only")
    return {"shape": shape, "size": size, "counts": [
        module.find_number_of_intruder_dimensions(base, tuned, asked, threshold, k=K) for threshold in THRESHOLDS]}


if __name__ == "__main__":
    for name in ("datasets", "peft", "transformers"):
        sys.modules[name] = MagicMock()
    sys.path.insert(0, sys.argv[1])
    found = importlib.import_module("find_intruder_dimensions")
    records = [record(found, shape, size) for shape in SHAPES for size in SIZES]
    write("intruders", __file__, {"reeceshuttle/intruder-dimensions": revision(sys.argv[1])}, thresholds=THRESHOLDS, k=K,
          records=records)
    print([r["counts"] for r in records])
