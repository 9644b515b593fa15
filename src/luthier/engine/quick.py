"""Linear layers that only read: weights in the order in which a processor's kernel wants them.

A product with a few rows (one token for each of some requests) costs the reading of the weights. From a plain [out, in]
bfloat16 matrix the kernel reads them in an order that is not its own, at about half of the memory's bandwidth; reordered
once, they stream. Gradients are not made, so this is for models that answer, never for one that is trained.

Whether it pays is measured once a process (`speedup`) and recorded with the other decisions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from luthier.engine.models import Model

# Fewer rows than this take another kernel, which is slower than this many rows.
ROWS = 4


class QuickLinear(nn.Module):
    """A frozen linear layer, x [..., in] -> [..., out], bfloat16 on a processor."""

    weight = None  # a model that looks at a layer's weight before it asks the layer (T5) sees that there is none

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight_bytes = linear.weight.numel() * linear.weight.element_size()
        self.reordered = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's answer; no gradient flows."""
        rows = x.detach().reshape(-1, self.in_features)
        count = rows.shape[0]
        if count < ROWS:
            rows = torch.cat([rows, rows.new_zeros(ROWS - count, self.in_features)])
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.reordered, self.bias, "none", [], "")
        return out[:count].view(*x.shape[:-1], self.out_features)


def fits(linear: Any, kind: Any = QuickLinear) -> bool:
    """Whether a module is a plain linear layer that can be read this way: reordering is for bfloat16 on a processor."""
    if type(linear) is not nn.Linear or linear.weight.requires_grad:
        return False
    return kind is not QuickLinear or (linear.weight.dtype == torch.bfloat16 and linear.weight.device.type == "cpu")


def quicken(model: Model, kind: Callable[[nn.Linear], nn.Module] = QuickLinear) -> Model:
    """Replace the linear layers below the vocabulary head, once; the head's own copy is made when something is written.

    kind: what they become, reordered or `int8.Int8Linear`.

    The head stays: its weight may be the embedding's, and losses read it. So do the layers of adapters that read the
    weight itself, which is anything but plain LoRA.
    """
    adapters = getattr(model.module, "peft_config", {}).values()
    if any(str(getattr(a.peft_type, "value", a.peft_type)) != "LORA" or a.use_dora for a in adapters):
        return model
    inner = model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.module
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    for parent in list(model.module.modules()):
        for name, child in list(parent.named_children()):
            if child is not head and fits(child, kind) and not isinstance(parent, nn.ModuleDict):
                setattr(parent, name, kind(child))
    model.quick_kind = kind
    return model


def quickened(model: Model) -> bool:
    """Whether a model's layers were replaced."""
    return model.quick_kind is not None


def speedup(size: tuple[int, int] = (2048, 640), repeats: int = 20) -> float:
    """How many times as fast a product with a few rows is with reordered weights; 0 where there is no such kernel."""
    linear = nn.Linear(size[1], size[0], bias=False, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.ones(ROWS, size[1], dtype=torch.bfloat16)
    try:
        quick = QuickLinear(linear)
        near = torch.allclose(quick(x).float(), linear(x).float(), rtol=2e-2, atol=2e-2)
    except (RuntimeError, AttributeError, NotImplementedError):
        return 0.0
    return _seconds(linear, x, repeats) / _seconds(quick, x, repeats) if near else 0.0


def _seconds(module: nn.Module, x: torch.Tensor, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        module(x)
        best = min(best, time.perf_counter() - began)
    return best
