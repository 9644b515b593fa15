"""Metering: a forward and a backward on tensors without content, to count what the real ones will take.

Modules on torch's meta device compute shapes only. A `Meter` watches every operation of such a pass: which storages
live and how large they are together, the FLOP of matrix products, the bytes that the other operations read and write,
and how many operations there are. So nothing about an architecture or a method is typed in: the layers that will be
trained are run, with the method on them.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import softmax
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from luthier.engine.attention import no_masks
from luthier.engine.forward import _takes_layout, trunk_of
from luthier.engine.fused_kernels import BLOCK
from luthier.engine.packing import SHORT

if TYPE_CHECKING:
    from luthier.engine.models import Model


# What the soft-max of one score costs, in bytes moved at the memory's rate: its passes stay in the cache, its exponentials
# do not come free (measured at about a fifth of a product of width 640 by benchmarks/fused_loss.py).
SOFTMAX_BYTES = 40


@dataclass
class Work:
    """FLOP by format, bytes moved by everything that is no matrix product, and operations."""

    flops: dict[str, float] = field(default_factory=dict)
    moved: float = 0.0
    calls: int = 0

    def seconds(self, rates: Any) -> float:
        """How long it takes at given rates (`hardware.Rates`)."""
        products = sum(n / rates.flops(dtype) for dtype, n in self.flops.items())
        return float(products + self.moved / rates.bandwidth + self.calls * rates.call_seconds)

    def times(self, factor: float) -> Work:
        """So many of it."""
        return Work({k: v * factor for k, v in self.flops.items()}, self.moved * factor, round(self.calls * factor))

    def __add__(self, other: Work) -> Work:
        names = {**self.flops, **other.flops}
        return Work({k: self.flops.get(k, 0) + other.flops.get(k, 0) for k in names}, self.moved + other.moved,
                    self.calls + other.calls)


class Meter(TorchDispatchMode):
    """Counts the operations within its block. `live` and `peak` are bytes of storages made since it began."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()
        self.live = self.peak = 0
        self._known: set[int] = set()
        # Matrix products in bfloat16 of different shapes: each gets a kernel of its own, made when it is first met.
        self.kernels: set[tuple[Any, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        read = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, torch.Tensor)]
        packet = func._overloadpacket
        if packet in flop_registry:
            dtype = str(read[0].dtype).removeprefix("torch.")
            self.work.flops[dtype] = self.work.flops.get(dtype, 0) + \
                flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            self.work.calls += 1
            if dtype == "bfloat16":
                self.kernels.add((str(packet), *(tuple(t.shape) for t in read), *(tuple(t.stride()) for t in read)))
        elif made and not func.is_view:
            self.work.moved += sum(map(_bytes, (*made, *read)))
            self.work.calls += 1
        for tensor in made:
            self._watch(tensor)
        return out

    def _watch(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or tensor.device.type != "meta":
            return
        self._known.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _bytes(tensor: torch.Tensor) -> int:
    # An expanded or broadcast tensor is read once, however large it looks.
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class _Kept(torch.autograd.Function):
    """Attention that keeps no scores, as the fused kernel: query, key, value, the answer and one sum a query."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class _Sketch:
    """A layout of `rows` segments of one length: what `packing.Packed` computes, on tensors without content."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.flops = 0.0

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float | None,
               window: int | None, dropout: float, causal: bool) -> torch.Tensor:
        heads, groups, width = query.shape[1], key.shape[1], query.shape[3]
        q, k, v = (x[0].transpose(0, 1).reshape(self.rows, -1, x.shape[1], x.shape[3]).transpose(1, 2)
                   for x in (query, key, value))
        tokens = q.shape[2]
        if tokens * tokens > SHORT:
            # Twice two products in the forward, five in the backward; the causal half is skipped by the kernel.
            self.flops += 7 * 2 * heads * self.rows * tokens * tokens * width / (2 if causal else 1)
            out = _Kept.apply(q, k, v)
        else:
            asked = q.reshape(self.rows * groups, heads // groups * tokens, width) * (scaling or width**-0.5)
            scores = torch.bmm(asked, k.reshape(self.rows * groups, tokens, width).transpose(1, 2))
            weights = softmax(scores.view(self.rows, heads, tokens, tokens), -1)
            if dropout:
                weights = torch.dropout(weights, dropout, True)
            out = torch.bmm(weights.view(self.rows * groups, -1, tokens), v.reshape(self.rows * groups, tokens, width))
            out = out.view(self.rows, heads, tokens, width)
        answer: torch.Tensor = out.transpose(1, 2).reshape(1, self.rows * tokens, heads, width)
        return answer


@dataclass(frozen=True)
class Passed:
    """One micro-batch on the meter. Bytes: `activations` live after the trunk's forward, `vocabulary` more while the
    loss is made, `backward` more than both at the backward's highest (gradients of weights counted in). `kernels`:
    different bfloat16 products.
    """

    work: Work
    activations: int
    vocabulary: int
    backward: int
    kernels: int = 0

    @property
    def peak(self) -> int:
        """The highest of the whole pass."""
        return self.activations + max(self.vocabulary, self.backward)


def passed(model: Model, rows: int, tokens: int, learned: int, head: Any = None, backward: bool = True) -> Passed:
    """Run a micro-batch of `rows` rows with `tokens` tokens in all through a model on the meta device.

    learned: tokens whose probability is asked; `head`: the head of a label task instead.
    """
    length = max(1, round(tokens / rows))
    meter = Meter()
    sketch = _Sketch(rows)
    with torch.set_grad_enabled(backward), meter, no_masks():
        states = _trunk(model, rows, length, sketch if packed(model) else None)
        activations = meter.live
        before = meter.peak = meter.live
        loss = _loss(model, states, learned, head)
        vocabulary = meter.peak - before
        if backward:
            meter.peak = meter.live
            del states
            loss.backward()
    dtype = str(next(model.module.parameters()).dtype).removeprefix("torch.")
    meter.work.flops[dtype] = meter.work.flops.get(dtype, 0) + sketch.flops
    if head is None:
        scores, products = _vocabulary(model, min(learned, rows * length), backward)
        meter.work.flops[dtype] += 2 * products * scores * model.width
        meter.work.moved += SOFTMAX_BYTES * scores
    highest = meter.peak - activations if backward else 0
    for parameter in model.module.parameters():
        parameter.grad = None
    return Passed(meter.work, activations, vocabulary, max(0, highest), len(meter.kernels))


def packed(model: Model) -> bool:
    """Whether the rows will be packed: what `forward.packs` asks the weights, as far as it shows without them."""
    return model.architecture != "encoder-decoder" and _takes_layout(model)


def _trunk(model: Model, rows: int, length: int, sketch: _Sketch | None) -> torch.Tensor:
    """[tokens, width] last hidden states."""
    # A mask that is made already: making one asks what stands in tensors, and here nothing does.
    arguments: dict[str, Any] = {"attention_mask": torch.zeros(1, 1, 1, 1, device="meta")}
    if sketch is None:
        ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    else:
        ids = torch.zeros(1, rows * length, dtype=torch.long, device="meta")
        arguments |= {"position_ids": torch.zeros_like(ids), "layout": sketch}
    if model.architecture == "encoder-decoder":
        arguments["decoder_input_ids"] = ids
    if model.architecture != "encoder":
        arguments["use_cache"] = False
    result = trunk_of(model)(input_ids=ids, **arguments)
    states: torch.Tensor = result.last_hidden_state.flatten(0, 1)
    return states


def _loss(model: Model, states: torch.Tensor, learned: int, head: Any) -> torch.Tensor:
    """A scalar to go backward from, made as the objectives make it."""
    if head is not None:
        pooled = states.float().sum(0, keepdim=True).to(next(head.parameters()).dtype)
        total: torch.Tensor = head(pooled).float().sum()
        return total
    inner = model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.module
    vocabulary = inner.get_output_embeddings()
    if vocabulary is None:
        return states.float().sum()
    at = torch.zeros(max(1, min(learned, len(states))), dtype=torch.long, device="meta")
    found: torch.Tensor = _Blocks.apply(states[at], vocabulary.weight).sum()
    return found


class _Blocks(torch.autograd.Function):
    """What `fused.nll` holds: scores and probabilities of one block, the gradient of hidden, and with a trained head that
    of its weight. What stands in tensors decides there which scores are picked, so it can't be run without content."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        size = min(BLOCK["cpu"], len(hidden) * len(weight))
        ctx.block = [weight.new_empty(size), weight.new_empty(size, dtype=torch.float32)]
        return hidden.new_empty(len(hidden), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden, weight = ctx.saved_tensors
        return torch.empty_like(hidden), torch.empty_like(weight) if ctx.needs_input_grad[1] else None


def _vocabulary(model: Model, learned: int, backward: bool) -> tuple[float, int]:
    """Scores, and products over the vocabulary: one in the forward, one more for the gradient of hidden; a trained head
    makes its scores again and has a gradient of its own."""
    inner = model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.module
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if head is None:
        return 0.0, 0
    return float(learned * len(head.weight)), (4 if head.weight.requires_grad else 2) if backward else 1


def meta_model(folder: Any, artifact: Any, dtype: torch.dtype) -> Model:
    """A base with its tokenizer and without its weights, frozen, as `models.load_base` would hand it out."""
    from transformers import AutoConfig

    from luthier.engine.models import Model, architecture_of, auto_class, limit_of, load_tokenizer, senses

    architecture = architecture_of(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        module = auto_class(folder).from_config(config, dtype=dtype)
    module.train().requires_grad_(False)
    return Model(module, load_tokenizer(folder), architecture, "plan", str(folder.name), limit_of(config), artifact,
                 **senses(folder, module))


def state_bytes(optimizer: Any) -> float:
    """Bytes of state that an optimizer (a component) keeps for each trained number: one step on a small weight."""
    weight = torch.zeros(64, 64, requires_grad=True)
    weight.grad = torch.ones_like(weight)
    made = optimizer.make([{"params": [weight]}], 1e-3)
    made.step()
    kept: Sequence[Any] = [t for s in made.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    return float(sum(t.numel() * t.element_size() for t in kept if t.numel() > 1) / weight.numel())
