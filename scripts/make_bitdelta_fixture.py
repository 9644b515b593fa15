"""Record what BitDelta's own code makes of a change: the oracle of `bitdelta`.

    git clone https://github.com/FasterDecoding/BitDelta && python scripts/make_bitdelta_fixture.py BitDelta

writes tests/fixtures/bitdelta.json: packed signs, scales and the changes that they stand for, in float32. Its kernel for
products is for a GPU and is left out; weights come from a formula, so that the fixture holds results only.
"""

from __future__ import annotations

import sys
from types import ModuleType
from unittest.mock import MagicMock

from _fixture import revision, wave, write

CASES = [(5, 64, 0.9), (3, 32, 2.0), (8, 96, 0.0)]  # out, in, shift of the change; every seventh entry does not change


def record(rows: int, columns: int, shift: float) -> dict:
    """The base is the wave of shift 0; the change that of `shift` and size 0.01."""
    from bitdelta.diff import BinaryDiff, unpack

    base, change = wave(rows, columns), wave(rows, columns, shift=shift, scale=0.01)
    change.view(-1)[::7] = 0.0
    made = BinaryDiff(base, base + change)
    dense = ((unpack(made.mask) * 2 - 1) * made.coeff).T
    return {"shape": [rows, columns], "shift": shift, "scale": float(made.coeff.detach()), "packed": made.mask.tolist(),
            "change": dense.detach().flatten().tolist()}


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    for name in ("triton", "triton.language"):
        sys.modules[name] = MagicMock(spec=ModuleType, jit=lambda f: f, autotune=lambda **given: lambda f: f,
                                      Config=dict, language=MagicMock())
    records = [record(*case) for case in CASES]
    write("bitdelta", __file__, {"FasterDecoding/BitDelta": revision(sys.argv[1])}, records=records)
    print(f"{len(records)} cases")
