"""leti: -sum over all tokens of log p(token | what stands before it), of programs told by the data step `leti`.

Reward token, feedback, problem and program are learned alike; nothing ends a text, since where a program was cut is no end
that the model chose. Source: Wang et al. 2023, "LETI: Learning to Generate from Textual Interactions" (seed 47).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from luthier.core.example import Dropped, Example
from luthier.core.kinds import DroppedRow, Features, Objective, Tokens
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render


class LetiObjective(Objective, name="leti", seeds=[47]):
    """Learn all tokens of told programs, without an end."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"nll": "additive"}
    architectures: ClassVar[tuple[Any, ...]] = ("decoder",)
    learns_to_stop: ClassVar[bool] = False

    def rows(self, example: Example, render: Render, rng: Rng) -> list[Features]:
        return [self.encode(example, render, rng)]

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        ids = render.document(example)[:-1]
        if len(ids) > render.max_tokens:
            raise DroppedRow(Dropped(example.id, "too long", f"{len(ids)} tokens, at most "
                                     f"max_tokens_per_example={render.max_tokens}"))
        return {"input": Tokens(ids, [False] + [True] * (len(ids) - 1))}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"nll": batch["input"].learned}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {"nll": run("policy", batch["input"]).nll().sum()}
