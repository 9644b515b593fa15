"""GOFT: a frozen weight times a rotation that few numbers hold.

    y = W (R' x),   R = P_1 P_2 ... P_ceil(log2 d),   P_r = Givens rotations of the pairs (i, i + 2^(r-1)), i = 0, 2^r, ..

d - 1 angles for a layer with d inputs, 0 at the start, applied in log2(d) sweeps without ever building R. Rotations keep
W's lengths and angles: (W R')(W R')' = W W'. One end of this fixed tree is free: R' turns any x into |x| e_0, but not any
vector into any other. Merged once, R costs nothing.

When it helps: adapters smaller than LoRA of rank 1. Source: Ma et al. 2024, arXiv 2404.04316 (seed 103).
"""

from __future__ import annotations

from typing import ClassVar

from luthier.techniques.methods._turning import Turning


class Goft(Turning, name="goft", seeds=[103]):
    """Turn the inputs of linear layers."""

    quasi: ClassVar[bool] = False
