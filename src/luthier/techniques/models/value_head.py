"""Value head: V(s_t) = w · h_t + b, what is still to be expected of an answer when its first t tokens are written.

h_t [tokens, width] are last hidden states. It is read in training alone; the model answers as any language model, and the
head lies beside its weights (`heads.safetensors`, `training_heads` in the record). With `start: zero` it values everything
at 0 before the first step, so nothing moves where no reward is given. When it helps: the head that `ppo` brings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.kinds import Head

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


class ValueHead(Head, name="value"):
    """One number a token: the reward that is still expected."""

    answers: ClassVar[bool] = False
    start: Literal["zero", "random"] = Field("zero", description="values before the first step: all 0, or those of a "
                                                           "random layer")

    def build(self, body: Model, labels: Sequence[str]) -> torch.nn.Module:
        from torch import nn

        module = nn.Linear(body.width, 1)
        if self.start == "zero":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        return module

    def predict(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.float()
