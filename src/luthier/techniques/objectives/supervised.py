"""Supervised fine-tuning: -sum over learned tokens of log p(token | what stands before it).

The mean is over all learned tokens of an optimizer step, so that 1 batch of 32 and 32 batches of 1 agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from luthier.core.example import Example
from luthier.core.kinds import Features, Objective
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render


class Supervised(Objective, name="supervised"):
    """Learn to give the answers, token by token."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"nll": "additive"}

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        return {"input": render.tokens(example)}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"nll": batch["input"].learned}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {"nll": run("policy", batch["input"]).nll().sum()}
