"""An objective with a known answer: the squared distance of a small module's outputs from planted ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch

from luthier.core.kinds import Objective


class Planted(Objective, name="planted"):
    """Sum over rows of |module(inputs[row]) - answers[row]|^2; a test sets both."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"squares": "coupled"}
    architectures: ClassVar[tuple[Any, ...]] = ("encoder",)
    inputs: ClassVar[torch.Tensor]
    answers: ClassVar[torch.Tensor]

    def encode(self, example, render, rng):
        raise NotImplementedError

    def count(self, batch):
        return {"squares": len(batch["row"])}

    def loss(self, run, batch):
        rows = batch["row"].long()
        said = run.models["policy"].module.get_base_model()(Planted.inputs[rows])
        return {"squares": (said - Planted.answers[rows]).square().sum()}
