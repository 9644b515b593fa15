"""AdamW: Adam with weight decay apart from the gradient. Source: Loshchilov, Hutter 2019."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from luthier.core.kinds import Optimizer

if TYPE_CHECKING:
    import torch


class AdamW(Optimizer, name="adamw"):
    """Adam with decoupled weight decay (torch's)."""

    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the second moment")
    epsilon: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="decay of the weights per step, times the learning rate")

    def make(self, groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
        from torch.optim import AdamW as Torch

        # Fused: one pass over weight, gradient and both moments instead of a dozen.
        return Torch(groups, lr=learning_rate, betas=(self.beta1, self.beta2), eps=self.epsilon,
                     weight_decay=self.weight_decay, fused=True)
