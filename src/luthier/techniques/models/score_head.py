"""Score head: one number a text, score = w · dropout(pooled) + b, not bounded.

pooled [rows, width] gives [rows, 1]. When it helps: ratings and other numbers that are learned by squared error. The bias
starts at `start`, the middle of the ratings, so that training does not begin by moving every score there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from luthier.core.kinds import Head

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


class ScoreHead(Head, name="score"):
    """One linear layer to one number."""

    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the pooled text while training")
    start: float = Field(3.0, description="score of every text before training, but for the random weights")

    def build(self, body: Model, labels: Sequence[str]) -> torch.nn.Module:
        from torch import nn

        layer = nn.Linear(body.width, 1)
        nn.init.constant_(layer.bias, self.start)
        return nn.Sequential(nn.Dropout(self.dropout), layer)

    def predict(self, outputs: torch.Tensor) -> torch.Tensor:
        """[rows, 1] scores as they are: there are no labels to give probabilities to."""
        return outputs.float()
