"""FLOPs of training, counted from a model's weights and the lengths of its rows.

A product with n weights costs 2 n FLOPs a token in the forward, 2 n for the gradient of its input, and 2 n for its own
gradient where it is trained. Attention between two tokens costs 4 width FLOPs (scores and sums) in the forward and
twice that backward. Gradients of inputs go down to the lowest layer that is trained, that layer included: its first
weights need them. The vocabulary is computed at learned positions only. Left out, as they are below a percent: norms,
biases, activations, soft-max, look-ups, pooling and task heads. What an implementation computes twice counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError
from luthier.engine.layers import layer_stacks

if TYPE_CHECKING:
    from luthier.engine.models import Model


def epoch_flops(model: Model, lengths: Sequence[int], learned: int, *, everything: bool = False, kept: bool = False
                ) -> float:
    """FLOPs of one pass over rows of these lengths (tokens) with `learned` learned tokens.

    What is trained is what requires a gradient, or every weight with `everything`. With `kept`, the states that enter
    the lowest trained layer are known and nothing below it is computed.

    Raises:
        LuthierError: the model's layers are not one stack.
    """
    stacks = layer_stacks(model)
    if len(stacks) != 1:
        raise LuthierError(f"The FLOPs of {model.name} can't be counted: its layers are not one stack.")
    layers = list(stacks[0].layers)
    trained = {id(p) for p in model.module.parameters() if everything or p.requires_grad}
    lowest = stacks[0].lowest(trained)
    total = 0.0
    for i, layer in enumerate(layers):
        weights = [p for p in layer.parameters() if p.dim() > 1]
        size = sum(p.numel() for p in weights)
        forward = 2.0 * size * sum(lengths) + _attention(model, lengths)
        total += forward if i >= lowest or not kept else 0.0
        if i >= lowest:
            total += 2.0 * size * sum(lengths) + 2.0 * _attention(model, lengths)
            total += 2.0 * sum(p.numel() for p in weights if id(p) in trained) * sum(lengths)
    return total + _vocabulary(model, learned, trained)


def flop_ratio(model: Model, lengths: Sequence[int], learned: int) -> float:
    """FLOPs of an epoch of what requires a gradient, with the states below it kept, as a share of full training's."""
    return (epoch_flops(model, lengths, learned, kept=True) /
            epoch_flops(model, lengths, learned, everything=True))


def _attention(model: Model, lengths: Sequence[int]) -> float:
    """Forward of one layer's attention: pairs of tokens that see each other, windows not counted."""
    config: Any = model.module.config
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or model.width // heads)
    pairs = sum(n * n if model.architecture == "encoder" else n * (n + 1) / 2 for n in lengths)
    return float(4 * width * pairs)


def _vocabulary(model: Model, learned: int, trained: set[int]) -> float:
    head = model.module.get_output_embeddings() if model.architecture != "encoder" else None
    if head is None:
        return 0.0
    products = 1 + bool(trained) + (id(head.weight) in trained)
    return float(2 * head.weight.numel() * learned * products)
