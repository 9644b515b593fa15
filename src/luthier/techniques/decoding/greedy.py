"""Greedy decoding: the most probable token, every time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from luthier.core.kinds import Decoder

if TYPE_CHECKING:
    import torch


class Greedy(Decoder, name="greedy"):
    """The most probable next token."""

    def scores(self, states: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return states["policy"]
