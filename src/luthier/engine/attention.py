"""Attention by layout: how tokens that share one forward see each other.

A model's own attention needs rectangles: rows of one length, padding, masks of [tokens, tokens]. A `Layout` replaces
that for one forward: it is handed queries, keys and values of all tokens and says what each token sees. Packing rows
without padding, reading a shared prefix once and keeping keys and values in slots are layouts.

A layout reaches the attention of every layer as the keyword `layout` of the model's forward, through the interface
that transformers documents for this (`AttentionInterface.register`, `AttentionMaskInterface.register`). Whether a
model hands it on is found by comparing (`packs`), not from a list of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "luthier"
_masked: ContextVar[bool] = ContextVar("masked", default=True)


class Layout(Protocol):
    """What each token of one forward sees."""

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float | None,
               window: int | None, dropout: float, causal: bool) -> torch.Tensor:
        """query [batch, heads, tokens, width], key and value [batch, key heads, tokens, width] ->
        [batch, tokens, heads, width]. `window`: how many tokens back a token sees, itself included; None = all.
        """


def _attend(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
            layout: Layout | None = None, scaling: float | None = None, dropout: float = 0.0,
            sliding_window: int | None = None, **rest: Any) -> tuple[torch.Tensor, None]:
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
                                      sliding_window=sliding_window, **rest)
    odd = [name for name in ("softcap", "s_aux", "position_bias") if rest.get(name) is not None]
    if odd:
        raise NotImplementedError(f"attention with {odd[0]} has no layout")
    out = layout.attend(module.layer_idx, query, key, value, scaling=scaling, window=sliding_window, dropout=dropout,
                        causal=bool(getattr(module, "is_causal", False)))
    return out, None


def _mask(*arguments: Any, **named: Any) -> Any:
    return sdpa_mask(*arguments, **named) if _masked.get() else None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)


@contextmanager
def no_masks() -> Iterator[None]:
    """Within this block a model makes no attention masks: its layout says what is seen."""
    token = _masked.set(False)
    try:
        yield
    finally:
        _masked.reset(token)
