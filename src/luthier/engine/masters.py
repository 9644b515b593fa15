"""Float32 masters of trained weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


class Masters:
    """Float32 copies of trained weights that are kept in a shorter format, so that small updates are not rounded away.

    With `beside`, every trained weight has its master in the computer's memory, and the optimizer's states with it.
    """

    def __init__(self, groups: list[dict[str, Any]], beside: bool = False) -> None:
        self.pairs: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self.groups = []
        for group in groups:
            masters = []
            for parameter in group["params"]:
                own = beside or parameter.dtype != torch.float32
                master = _copy(parameter, beside).requires_grad_() if own else parameter
                self.pairs.append((parameter, master))
                masters.append(master)
            self.groups.append({**group, "params": masters})

    def collect(self) -> None:
        """Add the gradients of one micro-batch to the masters' and clear them."""
        for parameter, master in self.pairs:
            if parameter is not master and parameter.grad is not None:
                gradient = parameter.grad.to(master.device, torch.float32)
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                parameter.grad = None

    def taken(self) -> list[torch.Tensor | None]:
        """The gradients, taken away."""
        found = [m.grad for m in self.tensors()]
        self.drop()
        return found

    def add(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Add gradients that were taken."""
        for master, gradient in zip(self.tensors() if gradients else [], gradients, strict=True):
            if gradient is not None:
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)

    def drop(self) -> None:
        """Throw all gradients away."""
        for parameter, master in self.pairs:
            parameter.grad = master.grad = None

    def names(self, weights: Mapping[str, torch.nn.Parameter]) -> list[str]:
        """The names of the masters, from those of the model's weights."""
        known = {id(p): n for n, p in weights.items()}
        return [known.get(id(p), "?") for p, _ in self.pairs]

    def spread(self) -> None:
        """Copy moved masters back into the model."""
        with torch.no_grad():
            for parameter, master in self.pairs:
                if parameter is not master:
                    parameter.copy_(master)

    def tensors(self) -> list[torch.Tensor]:
        """The masters, in a fixed order."""
        return [m for _, m in self.pairs]


def _copy(parameter: torch.nn.Parameter, beside: bool) -> torch.Tensor:
    if not beside:
        return parameter.detach().float().clone()
    # Pinned memory is what a GPU reads and writes without a detour.
    return torch.empty(parameter.shape, dtype=torch.float32, pin_memory=torch.cuda.is_available()).copy_(parameter.detach())
