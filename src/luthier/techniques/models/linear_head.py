"""Linear head: labels = W dropout(pooled) + b; one number where there are no labels, such as a rating."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from luthier.core.kinds import Head

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


class LinearHead(Head, name="linear"):
    """One linear layer on the pooled text."""

    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on the pooled text while training")

    def build(self, body: Model, labels: Sequence[str]) -> torch.nn.Module:
        from torch import nn

        return nn.Sequential(nn.Dropout(self.dropout), nn.Linear(body.width, len(labels) or 1))

    def predict(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.float().softmax(-1) if outputs.shape[-1] > 1 else outputs.float()
