"""What it costs to train a model's tensors, one by one, and which of them are worth it within a budget.

Tensors k = 1..N in forward order; training those with m_k = 1 costs, besides the forward,

    sum_k s_k t_dy[k] + m_k t_dw[k],   s_k = 1 where a tensor at k or below is trained

t_dw is the gradient of a tensor, t_dy what it takes to send a gradient through its product. The deepest trained tensor needs
no t_dy of its own; counting it makes the sum an upper bound, and `exact` leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.errors import UserError
from luthier.engine.layers import entered, layer_stacks

if TYPE_CHECKING:
    from luthier.engine.models import Model

BUCKETS = 1000  # of the whole backward
LEAST_SHARE = 0.05  # of the backward: a budget below this trains nothing
# Names of the layer whose product the attention weighs: gradients of the attention count with it.
VALUES = ("v_proj", "value", "v", "v_lin", "qkv_proj", "query_key_value", "c_attn")


@dataclass(frozen=True)
class Cost:
    """One tensor: FLOPs of sending a gradient through its product (`dy`), and of its own gradient (`dw`)."""

    name: str
    dy: float
    dw: float


@dataclass(frozen=True)
class Costs:
    """All tensors in forward order, the FLOPs of a forward, and of what every gradient must pass first (`always`)."""

    tensors: tuple[Cost, ...]
    forward: float
    always: float = 0.0

    @property
    def backward(self) -> float:
        """FLOPs of a backward that trains everything."""
        return self.always + sum(c.dy + c.dw for c in self.tensors)

    def of(self, chosen: Sequence[bool], exact: bool = False) -> float:
        """FLOPs of a backward that trains these."""
        trained = [k for k, m in enumerate(chosen) if m]
        if not trained:
            return 0.0
        above = self.tensors[trained[0] + exact:]
        return self.always + sum(c.dy for c in above) + sum(self.tensors[k].dw for k in trained)

    def share(self, rho: float) -> float:
        """The share of the backward that is left of `rho` times the FLOPs of full training, once the forward is paid."""
        ratio = self.forward / self.backward
        return rho * (1 + ratio) - ratio

    @property
    def least(self) -> float:
        """The smallest rho that leaves anything to train with."""
        ratio = self.forward / self.backward
        return (LEAST_SHARE + ratio) / (1 + ratio)


def costs(method: str, model: Model, lengths: Sequence[int], learned: int, forwards: int = 1) -> Costs:
    """The costs of a step on rows of these lengths (tokens) with `learned` learned tokens; a tied matrix counts once.

    forwards: 2 where activations are computed again in the backward.

    Raises:
        UserError: the model's layers are not one stack.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    stacks = layer_stacks(model)
    if len(stacks) != 1:
        raise UserError(f"{method} counts FLOPs along one stack of layers, and {model.name} has {len(stacks)}. Try --method "
                        "lora.")
    names = {id(p): n for n, p in model.module.named_parameters() if p.is_floating_point()}
    tokens, found, seen, forward = sum(lengths), [], set(), 0.0
    attention = _attention(model, lengths)
    heavy = {id(_value(layer)) for layer in stacks[0].layers}
    for module in entered(model):
        for part, parameter in module._parameters.items():
            if parameter is None or id(parameter) not in names or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            product = part == "weight" and isinstance(module, (nn.Linear, Conv1D))
            size = 2.0 * tokens * parameter.numel() if product else 0.0
            forward += size
            found.append(Cost(names[id(parameter)], size, size or float(tokens * parameter.shape[-1])))
        if id(module) in heavy:  # the last tensor of that layer, whose gradient comes through the attention
            forward += attention / 2
            found[-1] = replace(found[-1], dy=found[-1].dy + attention)
    head, always = model.module.get_output_embeddings() if model.architecture == "decoder" else None, 0.0
    if head is not None:
        size = 2.0 * learned * head.weight.numel()
        forward += size
        always = _add_head(found, names[id(head.weight)], size)
    return Costs(tuple(found), forwards * forward, always)


def _add_head(found: list[Cost], name: str, size: float) -> float:
    """The vocabulary: a tensor of its own, or the embedding's, whose product every gradient must pass; what that takes."""
    at = next((k for k, c in enumerate(found) if c.name == name), None)
    if at is None:
        found.append(Cost(name, size, size))
        return 0.0
    found[at] = replace(found[at], dw=found[at].dw + size)
    return size


def _value(layer: Any) -> Any:
    """The product that a layer's attention weighs; its first one where none is called so."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    linear: dict[str, Any] = {n: m for n, m in layer.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    named = [m for n, m in linear.items() if n.rpartition(".")[2] in VALUES]
    return (named or [*linear.values(), None])[0]


def _attention(model: Model, lengths: Sequence[int]) -> float:
    """Backward of scores and sums of one layer: 8 width FLOPs for each pair of tokens."""
    config = model.module.config
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or model.width // heads)
    return 8.0 * width * sum(n * n for n in lengths)


def best(importance: Sequence[float], dy: Sequence[float], dw: Sequence[float], budget: int, unit: float, exact: bool = False,
         always: float = 0.0) -> list[bool]:
    """Which tensors, in forward order, are worth most within `budget` buckets of `unit` FLOPs, by dynamic programming.

    P[k][t], the most within t with k the deepest trained one, counted from the output, is I_k + max over j < k of
    P[j][t - cost(j, k)], with cost(j, k) = t_dw[k] + sum of t_dy from j + 1 to k (exact: from j to k - 1), in whole buckets.
    The first link bears what is paid `always`. Tensors that can't be reached within the budget at all are not looked at.
    """
    own, gain = list(dw)[::-1], list(importance)[::-1]
    through = np.concatenate([[0.0], np.cumsum(list(dy)[::-1])])

    def cost(j: int, k: int) -> int:
        way = through[k - 1] - through[max(j - 1, 0)] if exact else through[k] - through[j]
        return int((way + own[k - 1] + (0.0 if j else always)) / unit + 1e-9)

    reach = sum(1 for k in range(1, len(own) + 1) if int((always + through[k - exact]) / unit + 1e-9) <= budget)
    table, came = [np.zeros(budget + 1)], [np.zeros(budget + 1, dtype=int)]
    for k in range(1, reach + 1):
        values = np.full(budget + 1, -np.inf)
        source = np.zeros(budget + 1, dtype=int)
        for j in range(k):
            shift = cost(j, k)
            if shift > budget:
                continue
            tried = table[j][:budget + 1 - shift] + gain[k - 1]
            better = tried > values[shift:]
            values[shift:][better], source[shift:][better] = tried[better], j
        table.append(values)
        came.append(source)
    k, left = int(np.argmax([row[budget] for row in table])), budget
    chosen = [False] * len(own)
    while k:
        chosen[k - 1] = True
        j = int(came[k][left])
        left, k = left - cost(j, k), j
    return chosen[::-1]


def within(found: Costs, importance: Sequence[float], share: float, exact: bool = False) -> list[bool]:
    """`best` with the backward's share as the budget; whole buckets that hide too much are paid for by a smaller budget."""
    unit = found.backward / BUCKETS
    dy, dw = [c.dy for c in found.tensors], [c.dw for c in found.tensors]
    budget = int(min(1.0, share) * BUCKETS + 1e-6)
    while True:
        chosen = best(importance, dy, dw, budget, unit, exact, found.always)
        over = found.of(chosen, exact) - share * found.backward
        if over <= 1e-6 * found.backward or not budget:
            return chosen
        budget = max(0, budget - max(1, int(over / unit)))
