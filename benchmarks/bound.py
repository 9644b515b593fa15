"""How fast this machine could be: matrix products in the model's own shapes, one big square, and memory bandwidth.

Work per token, in multiplications and additions (attention scores, norms and activations are left out, so a bound is a
little optimistic)::

    frozen weight of the trunk        4   (2 forward, 2 for the gradient of its input)
    trained weight                    6   (2 more for its own gradient; low-rank adapters are trained weights)
    frozen weight of the head         4   per trained token (logits, and the gradient of the hidden state)
    trained weight of the head        6   per trained token
    frozen and below what is trained  2   in the first epoch, 0 once its activations are kept

`tokens_per_second = rate * tokens / sum of work`, with the rate measured over the products of the trunk and of the
head, each shape weighted by its share of the work.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

HEAD_COLUMNS = 16384  # of the vocabulary at once: the rate of the whole, without its memory
SQUARE = 2048
VECTORS = ("bitfit", "layernorm")  # methods that train vectors of the trunk, whose own gradients cost nothing beside it


@dataclass(frozen=True)
class Shapes:
    """Linear layers as (inputs, outputs, how many of them), the head as (width, vocabulary) or None."""

    layers: tuple[tuple[int, int, int], ...]
    head: tuple[int, int] | None = None
    adapter_weights: int = 0

    @property
    def trunk_weights(self) -> int:
        return sum(i * o * n for i, o, n in self.layers)

    @property
    def head_weights(self) -> int:
        return self.head[0] * self.head[1] if self.head else 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Shapes:
        return cls(tuple(tuple(s) for s in values["layers"]), tuple(values["head"]) if values["head"] else None,
                   values["adapter_weights"])


def training_flops(shapes: Shapes, tokens: int, trained_tokens: int, method: str, trained_share: float = 1.0,
                   kept: bool = False) -> float:
    """Work of one pass over `tokens`, of which `trained_tokens` are learned. `method`: a workload's.

    `trained_share` of the trunk trains in top-layers; `kept` says that the rest's activations need not be made again.
    """
    trunk, head = shapes.trunk_weights, shapes.head_weights
    if method in VECTORS:
        return tokens * 4 * trunk + trained_tokens * 4 * head
    if method == "lora":
        return tokens * (4 * trunk + 6 * shapes.adapter_weights) + trained_tokens * 4 * head
    if method == "full":
        return tokens * 6 * trunk + trained_tokens * 6 * head
    below = 0 if kept else 2 * (1 - trained_share) * trunk
    return tokens * (6 * trained_share * trunk + below) + trained_tokens * 4 * head


def gemm_rate(shapes: Shapes, rows: int, dtype: torch.dtype, seconds: float = 1.0, gradients: bool = True) -> float:
    """FLOP/s over the products of a forward and of the gradients of its inputs, weighted as the model weights them.

    `rows` is the number of tokens that go through a layer together; without `gradients` only the forward counts.
    """
    products = [(rows, i, o, n) for i, o, n in shapes.layers]
    if shapes.head:
        width, vocabulary = shapes.head
        columns = min(HEAD_COLUMNS, vocabulary)
        products.append((min(rows, 128), width, columns, vocabulary / columns))
    work = spent = 0.0
    for m, i, o, times in products:
        flops = 2 * m * i * o
        weight = _fill(o, i, dtype)
        for a, b in ((_fill(m, i, dtype), weight.T), (_fill(m, o, dtype), weight))[:2 if gradients else 1]:
            # The head sees fewer rows at a time than the trunk but all of them in the end.
            share = times * rows / m
            work += flops * share
            spent += share * _seconds(a, b, seconds / len(products) / 2)
    return work / spent


def square_rate(dtype: torch.dtype, seconds: float = 0.5) -> float:
    """FLOP/s of one square product."""
    return 2 * SQUARE**3 / _seconds(_fill(SQUARE, SQUARE, dtype), _fill(SQUARE, SQUARE, dtype), seconds)


def bandwidth(megabytes: int = 32, repeats: int = 8) -> float:
    """Bytes/s of a = b + 2 c over arrays larger than the caches: two read, one written."""
    n = megabytes * 1_000_000 // 4
    a, b, c = torch.zeros(n), torch.ones(n), torch.ones(n)
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        torch.add(b, c, alpha=2, out=a)
        best = min(best, time.perf_counter() - began)
    return 3 * n * 4 / best


def read_rate(megabytes: int = 256, repeats: int = 5) -> float:
    """Bytes/s of reading weights once: a bf16 matrix of that size times one vector, the work of decoding one token."""
    rows = megabytes * 1_000_000 // (2 * 2048)
    weight, vector = _fill(rows, 2048, torch.bfloat16), _fill(2048, 1, torch.bfloat16)
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        weight @ vector
        best = min(best, time.perf_counter() - began)
    return weight.numel() * 2 / best


def decoding(shapes: Shapes, batch: int, prompt_tokens: int, new_tokens: int, bytes_per_weight: float, read: float,
             dtype: torch.dtype) -> dict[str, float]:
    """New tokens per second that reading every weight once a step, and the products of a step, allow for a batch.

    `read` is bytes/s. `with_prompts` adds the products of reading the prompts, of `prompt_tokens` each.
    """
    weights = shapes.trunk_weights + shapes.head_weights
    step_rate = gemm_rate(shapes, batch, dtype, 0.5, gradients=False)
    prompt_rate = gemm_rate(shapes, batch * prompt_tokens, dtype, 0.5, gradients=False)
    step = max(weights * bytes_per_weight / read, batch * 2 * weights / step_rate)
    prompts = batch * prompt_tokens * 2 * shapes.trunk_weights / prompt_rate
    return {"bandwidth": batch * read / (weights * bytes_per_weight), "gemm": step_rate / (2 * weights),
            "either": batch / step, "with_prompts": batch * new_tokens / (prompts + new_tokens * step)}


def measure(shapes: Shapes, rows: int, dtype: torch.dtype, seconds: float = 1.0) -> dict[str, float]:
    """All rates at this moment."""
    return {"gemm_gflops": gemm_rate(shapes, rows, dtype, seconds) / 1e9,
            "square_gflops": square_rate(dtype, seconds / 2) / 1e9, "triad_gbytes": bandwidth() / 1e9}


def shapes_of(module: Any, adapter_rank: int = 0) -> Shapes:
    """The linear layers of a transformers model and its vocabulary head; adapters of `adapter_rank` on every layer."""
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    counted: dict[tuple[int, int], int] = {}
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not head:
            size = (layer.in_features, layer.out_features)
            counted[size] = counted.get(size, 0) + 1
    adapters = sum(adapter_rank * (i + o) * n for (i, o), n in counted.items())
    return Shapes(tuple((i, o, n) for (i, o), n in counted.items()),
                  (head.in_features, head.out_features) if head is not None else None, adapters)


def _seconds(a: torch.Tensor, b: torch.Tensor, budget: float) -> float:
    """Seconds of one product: the median of as many as fit in the budget, at least three."""
    a @ b
    taken: list[float] = []
    until = time.perf_counter() + budget
    while len(taken) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - began)
    return sorted(taken)[len(taken) // 2]


def _fill(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((rows, columns), 0.5, dtype=dtype)


def spread(before: dict[str, float], after: dict[str, float]) -> dict[str, Sequence[float]]:
    """Each rate before and after the measured work."""
    return {name: [round(before[name], 1), round(after[name], 1)] for name in before}
