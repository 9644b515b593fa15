"""Passes over a vocabulary too large to keep: blocks of scores that fit the processor's cache, made and used at once.

Rows go in chunks, and for each chunk the vocabulary goes by in blocks of columns. The soft-max is found on the way
(running maximum and sum, as in Milakov & Gimelshein 2018), and so is the mean of the head's rows under it, which is the
gradient of log-sum-exp for the hidden state: what was summed under an older maximum is scaled to the new one. So the
head is read once a chunk, and no [chunk, vocabulary] tensor exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from luthier.engine import compiling

BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}
SMALL = 1 << 22
# Chunks whose gradients of one block of scores are laid beside each other.
BESIDE = 4
Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


@dataclass(frozen=True)
class Settings:
    """How the work is cut; it decides rounding, so a run keeps its own.

    `chunk` rows are worked on at a time; `compiled` fuses the soft-max where the scores are many enough to pay for it.
    """

    chunk: int = 256
    compiled: bool = False


@dataclass(frozen=True)
class Head:
    """scores = cap(hidden Wᵀ + b), cap(x) = cap tanh(x / cap). weight [vocabulary, width], bias [vocabulary]."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    cap: float | None = None

    @property
    def size(self) -> int:
        """Entries of the vocabulary."""
        return self.weight.shape[0]

    def raw(self, hidden: torch.Tensor, columns: slice = slice(None)) -> torch.Tensor:
        """[n, columns] scores before the cap, in the head's format."""
        weight = self.weight[columns]
        return hidden @ weight.T if self.bias is None else torch.addmm(self.bias[columns], hidden, weight.T)

    def scores(self, hidden: torch.Tensor, columns: slice = slice(None)) -> torch.Tensor:
        """[n, columns] scores, float32 (float64 for a float64 head)."""
        return capped(wide(self.raw(hidden, columns)), self.cap)[0]


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """In the format sums are taken in: float32, or float64 where the input is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def capped(raw: torch.Tensor, cap: float | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """cap tanh(raw / cap) and its slope; the slope is None without a cap."""
    if cap is None:
        return raw, None
    bent = torch.tanh(raw / cap)
    return bent * cap, 1 - bent * bent


def row_chunks(rows: int, settings: Settings) -> Iterator[slice]:
    """Slices of rows that are worked on together."""
    return (slice(i, min(i + settings.chunk, rows)) for i in range(0, rows, settings.chunk))


def column_blocks(size: int, rows: int, device: torch.device) -> Iterator[slice]:
    """Slices of the vocabulary such that [rows, columns] fits the cache; at least 256 columns."""
    columns = max(256, BLOCK.get(device.type, BLOCK["cuda"]) // max(rows, 1))
    return (slice(i, min(i + columns, size)) for i in range(0, size, columns))


# --- the soft-max pass over one block, in one function that may be compiled -------------------------------------------

def absorb(raw: torch.Tensor, top: torch.Tensor, total: torch.Tensor, cap: torch.Tensor | None
           ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One more block of scores: (exp(scores - top) times the cap's slope in raw's format, new top, new total)."""
    scores = wide(raw)
    if cap is not None:
        bent = torch.tanh(scores / cap)
        scores = bent * cap
    best = torch.maximum(top, scores.amax(-1))
    masses = (scores - best[:, None]).exp()
    total = total * (top - best).exp() + masses.sum(-1)
    return (masses if cap is None else masses * (1 - bent * bent)).to(raw.dtype), best, total


def absorb_in_place(raw: torch.Tensor, top: torch.Tensor, total: torch.Tensor, cap: torch.Tensor | None
                    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`absorb` without intermediate tensors, for eager mode; may overwrite `raw`."""
    scores = wide(raw)
    slope = None
    if cap is not None:
        scores.div_(cap).tanh_()
        slope = torch.addcmul(scores.new_ones(()), scores, scores, value=-1)
        scores.mul_(cap)
    best = torch.maximum(top, scores.amax(-1))
    masses = scores.sub_(best[:, None]).exp_()
    total = total * (top - best).exp() + masses.sum(-1)
    return (masses if slope is None else masses.mul_(slope)).to(raw.dtype), best, total


@dataclass
class Scan:
    """What one pass over the vocabulary found for n rows.

    `log_sum` [n]; `picked` [n, k] scores at `ids` [n, k]; `mean` [n, width] = sum over the vocabulary of probability
    times slope times row of the head, or None. With `apart`, `ids` were given and are left out of `mean`.
    """

    log_sum: torch.Tensor
    picked: torch.Tensor
    ids: torch.Tensor
    mean: torch.Tensor | None


def scan(hidden: torch.Tensor, head: Head, ids: torch.Tensor | None, best: int, with_mean: bool,
         settings: Settings) -> Scan:
    """Log-sum-exp, the scores of given `ids` [n, k] or of the `best` highest, and the head's mean row, in one pass."""
    n, k = len(hidden), best if ids is None else ids.shape[1]
    sums = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    found = Scan(hidden.new_empty(n, dtype=sums), hidden.new_full((n, k), float("-inf"), dtype=sums),
                 hidden.new_zeros((n, k), dtype=torch.long) if ids is None else ids,
                 hidden.new_empty((n, head.weight.shape[1]), dtype=sums) if with_mean else None)
    cap = None if head.cap is None else torch.tensor(head.cap, dtype=sums, device=hidden.device)
    fused = settings.compiled and n * head.size >= SMALL
    one_pass = compiling.compiled(absorb) if fused else absorb_in_place
    for rows in row_chunks(n, settings):
        _scan_chunk(found, rows, hidden[rows], head, ids is not None, cap, one_pass)
    return found


def _scan_chunk(found: Scan, rows: slice, hidden: torch.Tensor, head: Head, given: bool, cap: torch.Tensor | None,
                one_pass: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
    picked, ids = found.picked[rows], found.ids[rows]
    # The lowest number instead of -inf: a block of nothing but -inf must not give -inf - -inf.
    top = picked.new_full((len(hidden),), torch.finfo(picked.dtype).min)
    total, mean = torch.zeros_like(top), None if found.mean is None else found.mean[rows].zero_()
    for columns in column_blocks(head.size, len(hidden), hidden.device):
        raw = head.raw(hidden, columns)
        if given:
            row, place = ((ids >= columns.start) & (ids < columns.stop)).nonzero(as_tuple=True)
            column = ids[row, place] - columns.start
            picked[row, place] = capped(wide(raw[row, column]), head.cap)[0]
        elif picked.shape[1]:
            _keep_best(picked, ids, raw, columns.start, head.cap)
        before = top
        # A size of 1 would be compiled once more.
        masses, top, total = (one_pass if min(raw.shape) > 1 else absorb_in_place)(raw, top, total, cap)
        if mean is not None:
            if given:
                masses[row, column] = 0
            mean.mul_((before - top).exp()[:, None]).add_(masses @ head.weight[columns])
    found.log_sum[rows] = top + total.log()
    if mean is not None:
        mean.div_(total[:, None])


def _keep_best(picked: torch.Tensor, ids: torch.Tensor, raw: torch.Tensor, start: int, cap: float | None) -> None:
    """Merge a block's highest scores into the highest so far, in place; of equal ones the lower id stays."""
    here, places = raw.topk(min(picked.shape[1], raw.shape[1]), -1)
    values = torch.cat([picked, capped(wide(here), cap)[0]], 1)
    places = torch.cat([ids, places + start], 1)
    picked[:], order = values.topk(picked.shape[1], -1)
    ids[:] = places.gather(1, order)


# --- from gradients of scores to gradients of what made them ----------------------------------------------------------

def push(hidden: torch.Tensor, head: Head, slope_of: Callable[[slice, slice, torch.Tensor], torch.Tensor],
         wanted: tuple[bool, bool, bool], settings: Settings) -> Gradients:
    """Gradients of hidden, weight and bias (those `wanted`) from `slope_of(rows, columns, scores)` = d loss / d scores.

    Scores are made anew, block by block. The vocabulary is the outer loop: a block's gradients of many rows are laid
    beside each other, rounded to the format of the weight, so that two products make of them what hidden and weight get.
    """
    sums = wide(hidden[:0]).dtype
    d_hidden = torch.zeros_like(hidden, dtype=sums) if wanted[0] else None
    d_weight = torch.empty_like(head.weight) if wanted[1] else None
    d_bias = torch.empty_like(head.bias) if wanted[2] and head.bias is not None else None
    most, beside = min(settings.chunk, len(hidden)), BESIDE * settings.chunk
    for columns in column_blocks(head.size, most, hidden.device):
        weight = head.weight[columns]
        weight_sum: torch.Tensor | None = None
        bias_sum = torch.zeros(len(weight), dtype=sums, device=hidden.device)
        for start in range(0, max(1, len(hidden)), beside):
            many = hidden[start:start + beside]
            low = many.new_empty(len(many), len(weight), dtype=weight.dtype)
            for rows in row_chunks(len(many), settings):
                own = slice(start + rows.start, start + rows.stop)
                scores, slope = capped(wide(head.raw(hidden[own], columns)), head.cap)
                d = slope_of(own, columns, scores)
                low[rows] = d if slope is None else d.mul_(slope)
                if d_bias is not None:
                    bias_sum += d.sum(0)
            if d_hidden is not None:
                d_hidden[start:start + beside] += low @ weight
            if d_weight is not None and len(hidden) <= beside:
                torch.mm(low.T, many, out=d_weight[columns])
            elif d_weight is not None:
                part = low.T @ many
                weight_sum = part.to(sums) if weight_sum is None else weight_sum.add_(part)
        if d_weight is not None and weight_sum is not None:
            d_weight[columns] = weight_sum
        if d_bias is not None:
            d_bias[columns] = bias_sum
    return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, d_bias


def add_at(target: torch.Tensor, ids: torch.Tensor, values: torch.Tensor, columns: slice) -> None:
    """target[row, id - columns.start] += value for the ids [n, k] that lie in `columns`; in place."""
    row, place = ((ids >= columns.start) & (ids < columns.stop)).nonzero(as_tuple=True)
    target.index_put_((row, ids[row, place] - columns.start), values[row, place], accumulate=True)


def weighted_rows(head: Head, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[n, width] sum over k of weights [n, k] times the head's rows at ids [n, k]."""
    total = weights.new_zeros(len(ids), head.weight.shape[1])
    for place in range(ids.shape[1]):
        total.addcmul_(weights[:, place, None], wide(head.weight[ids[:, place]]))
    return total


def first_of_equals(ids: torch.Tensor) -> torch.Tensor:
    """[n, k] True where an id stands for the first time in its row."""
    ordered, order = ids.sort(stable=True, dim=-1)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(first).scatter_(1, order, first)


class Picked(torch.autograd.Function):
    """(log-sum-exp [n], picked scores [n, k], ids [n, k]) of hidden [n, width]; k given ids, or the `best` highest.

    With a frozen head the gradient of hidden is made on the way, in the pass that finds the sum; with a trained head
    the scores are made again in the backward.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
                ids: torch.Tensor | None, best: int, cap: float | None, settings: Settings) -> tuple[torch.Tensor, ...]:
        trained = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        head = Head(weight, bias, cap)
        found = scan(hidden, head, ids, best, ctx.needs_input_grad[0] and not trained, settings)
        ctx.head, ctx.settings, ctx.apart = (cap, bias is not None), settings, ids is not None
        ctx.save_for_backward(hidden, weight, bias, found.ids, found.log_sum, found.picked, found.mean)
        ctx.mark_non_differentiable(found.ids)
        return found.log_sum, found.picked, found.ids

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_sum: torch.Tensor, of_picked: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, ids, log_sum, picked, mean = ctx.saved_tensors
        head = Head(weight, bias, ctx.head[0])
        if mean is None:
            def slope_of(rows: slice, columns: slice, scores: torch.Tensor) -> torch.Tensor:
                d = scores.sub_(log_sum[rows, None]).exp_().mul_(of_sum[rows, None])
                add_at(d, ids[rows], of_picked[rows], columns)
                return d

            return *push(hidden, head, slope_of, ctx.needs_input_grad[:3], ctx.settings), None, None, None, None
        pull = of_picked
        if ctx.apart:
            # Their own share of the mean was left out: -(1 - p) is exact where p W - W would cancel.
            pull = pull + of_sum[:, None] * (picked - log_sum[:, None]).exp() * first_of_equals(ids)
        if head.cap is not None:
            pull = pull * (1 - (picked / head.cap) ** 2)
        d_hidden = (mean * of_sum[:, None]).add_(weighted_rows(head, ids, pull))
        return d_hidden.to(hidden.dtype), None, None, None, None, None, None
