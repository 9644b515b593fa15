"""Continued pretraining: -sum over the tokens of raw texts of log p(token | the text before it).

A text begins with the start token and ends with the learned end token. Under `over_long: split` a long text becomes rows
of at most `max_tokens_per_example` tokens; each token but the start token is learned in exactly one row, and a row begins
with the last token of the row before it, unlearned. Rows never hold two texts.

When it helps: much text of a field that a model knows little of, before it is tuned on questions. Source: Gururangan et
al. 2020, "Don't Stop Pretraining".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from luthier.core.example import Dropped, Example
from luthier.core.kinds import DroppedRow, Features, Objective
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render


class Pretrain(Objective, name="pretrain"):
    """Learn all tokens of raw texts."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"nll": "additive"}
    architectures: ClassVar[tuple[Any, ...]] = ("decoder",)
    learns_to_stop: ClassVar[bool] = False

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        blocks = list(render.blocks(example))
        if len(blocks) > 1:
            raise DroppedRow(Dropped(example.id, "too long", f"{len(render.document(example))} tokens, at most "
                                     f"max_tokens_per_example={render.max_tokens}; over_long: split makes rows of it"))
        return {"input": blocks[0]}

    def rows(self, example: Example, render: Render, rng: Rng) -> list[Features]:
        if render.over_long != "split":
            return [self.encode(example, render, rng)]
        return [{"input": block} for block in render.blocks(example)]

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"nll": batch["input"].learned}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {"nll": run("policy", batch["input"]).nll().sum()}
