"""Linear layers with weights in 8 bits: half of what bfloat16 reads, where reading is what writing costs.

Symmetric, one scale an output channel: w = round(w / s) s with s = max|w| / 127. Activations stay as they are. A model
with such layers is another model, if a near one: it is never chosen silently, and records say so. Source: Dettmers et
al. 2022 (the row-wise scheme; no outlier columns are kept apart).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear

# With more rows than this, weights unpacked to bfloat16 for one product are faster than the 8-bit kernel.
FEW_ROWS = 8


class Int8Linear(nn.Module):
    """A frozen linear layer, x [..., in] -> [..., out]; answers in the format of x."""

    weight = None  # as `quick.QuickLinear`

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        weight = plain.weight.detach().float()
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)
        self.quantized = (weight / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        self.scale = scale.to(plain.weight.dtype)
        self.bias = None if plain.bias is None else plain.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's answer; no gradient flows to the weights."""
        rows = x.reshape(-1, self.in_features)
        if len(rows) <= FEW_ROWS and x.dtype == torch.bfloat16 and x.device.type == "cpu":
            out = torch._weight_int8pack_mm(rows.contiguous(), self.quantized, self.scale)
        else:
            out = linear(rows, self.quantized.to(x.dtype)) * self.scale.to(x.dtype)
        return (out if self.bias is None else out + self.bias).view(*x.shape[:-1], self.out_features)
