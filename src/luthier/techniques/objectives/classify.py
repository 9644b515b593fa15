"""Classification: -sum over rows of log softmax(head(pooled(text)))[label].

pooled [batch, width] is the mean of the last hidden states over the text's tokens; the head maps it to
[batch, labels].
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


class Classify(Objective, name="classify"):
    """Learn the label of a text."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"nll": "additive"}
    architectures: ClassVar[tuple[Any, ...]] = ("encoder", "decoder")
    needs_head: ClassVar[bool] = True

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        if example.label is None:
            raise DroppedRow(Dropped(example.id, "no label"))
        return {"input": render.text(example), "label": render.label_id(example.label)}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"nll": len(batch["label"])}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        from torch.nn.functional import cross_entropy

        scores = run.head(run("policy", batch["input"]).pooled())
        run.measure(accuracy=(scores.argmax(-1) == batch["label"]).float())
        return {"nll": cross_entropy(scores.float(), batch["label"], reduction="sum")}
