"""Record what the code of mixout's authors computes: the oracle of `mixout`.

    git clone https://github.com/bloodwass/mixout && python scripts/make_mixout_fixture.py mixout

writes tests/fixtures/mixout.json: mixed weights with the masks that were drawn, and the gradients that the code hands back,
in float32. Weights come from a formula, so that the fixture holds results only.
"""

from __future__ import annotations

import sys

import torch
from _fixture import revision, wave, write

SHAPE = (6, 9)  # out, in
CASES = [(0.3, True), (0.5, True), (0.7, True), (0.9, True), (0.7, False)]  # p, and whether weights are swapped for a target


def record(p: float, target: bool) -> dict:
    """The trained weight is the wave of shift 0, the target that of shift 0.2; gradients are those of a sum with shift 0.9."""
    from mixout.functional import mixout

    weight, start = wave(*SHAPE).requires_grad_(True), wave(*SHAPE, shift=0.2) if target else None
    torch.manual_seed(int(10 * p))
    mixed = mixout(weight, start, p, True)
    keep = mixed.grad_fn.noise
    (mixed * wave(*SHAPE, shift=0.9)).sum().backward()
    return {"p": p, "target": target, "kept": keep.int().tolist(), "mixed": mixed.detach().flatten().tolist(),
            "gradient": weight.grad.flatten().tolist()}


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    records = [record(*case) for case in CASES]
    write("mixout", __file__, {"bloodwass/mixout": revision(sys.argv[1])}, shape=SHAPE, records=records)
    print(f"{len(records)} cases")
