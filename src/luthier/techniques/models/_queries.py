"""Modules of heads: queries that read states through decoder layers, and a scale to length 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Unit(nn.Module):
    """Scales features to length 1."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[batch, width] of length 1."""
        return nn.functional.normalize(features, dim=-1)


class Queries(nn.Module):
    """`module(states, mask)`: [batch, outputs], or [batch, places, outputs] for tags; see `enct5`.

    stack: decoder layers with their norm, None for a map of pooled states. scale: of what the stack says.
    """

    reads = "states"

    def __init__(self, stack: Any, count: int, outputs: int, width: int, problem: str, pooling: str, scale: float) -> None:
        super().__init__()
        self.stack = stack
        self.queries = nn.Parameter(torch.empty(count, width)) if stack is not None else None
        self.linear = nn.Linear(width, outputs)
        self.problem, self.pooling, self.scale = problem, pooling, scale

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if self.stack is None or self.queries is None:
            return self._pooled(states, mask)
        tags = self.problem == "tags"
        asked = self.queries.expand(len(states), -1, -1)
        asked = asked + states if tags else asked
        heard = self.stack(
            inputs_embeds=asked, attention_mask=everywhere(asked, mask if tags else None), encoder_hidden_states=states,
            encoder_attention_mask=mask, use_cache=False).last_hidden_state * self.scale
        said: torch.Tensor = self.linear(heard)
        if self.problem == "multi":
            return said[..., 0]
        return said if tags else said[:, 0]

    def _pooled(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen = states
        if self.problem != "tags":
            real = mask[..., None].to(states.dtype)
            seen = states[:, 0] if self.pooling == "first" else (states * real).sum(1) / real.sum(1)
        said: torch.Tensor = self.linear(seen)
        return said


def everywhere(asked: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """[batch, 1, queries, queries] what is added to scores: nothing, or much at padding; a decoder's own is causal."""
    batch, count = asked.shape[:2]
    added = torch.zeros(batch, 1, count, count, dtype=asked.dtype, device=asked.device)
    if mask is not None:
        added = added.masked_fill(~mask.bool()[:, None, None], torch.finfo(asked.dtype).min)
    return added
