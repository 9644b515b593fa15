"""Losses and distributions over a vocabulary, per position, without ever keeping [positions, vocabulary] numbers.

Every function takes the hidden states [n, width] of n positions and a `Head`, gives float32 numbers per position
(float64 for a float64 head), and has exact gradients for the hidden states and, where they are trained, for the head's
weight and bias. `settings` says how the work is cut.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from luthier.core.errors import LuthierError
from luthier.engine import compiling
from luthier.engine.fused_kernels import Head, Picked, Settings, capped, column_blocks, push, row_chunks, scan, wide

__all__ = ["MASKED", "Head", "Settings", "entropy", "kl", "log_probabilities", "log_sum", "measure", "mse", "nll", "topk",
           "use"]

MASKED = -100
# Most scores of one chunk that are kept between the two looks that entropy, divergence and distance take at them.
KEPT = 1 << 25
CHUNKS = (64, 128, 256, 512)
# Scores of one work from which a compiled soft-max gains more than compiling it takes (up to a minute, the first time).
LONG = 3e10

settings = Settings()


def use(chosen: Settings) -> None:
    """Work with these settings from now on."""
    global settings
    settings = chosen


def pays(scores: float) -> bool:
    """Whether compiling pays for so many scores in one work: it takes seconds, and gains a tenth of the head's time."""
    return scores >= LONG and compiling.available()


@contextmanager
def compiled(wanted: bool) -> Iterator[None]:
    """Within the block the soft-max is compiled, or not."""
    before = settings
    use(Settings(before.chunk, wanted))
    try:
        yield
    finally:
        use(before)


def measure(width: int = 640, size: int = 4096, repeats: int = 3) -> Settings:
    """The chunk that takes the least time a row here, a larger one only if it gains 3 %."""
    head = Head(torch.ones(size, width, dtype=torch.bfloat16))
    hidden = torch.zeros(max(CHUNKS), width, dtype=torch.bfloat16)
    best = CHUNKS[0]
    seconds: dict[int, float] = {}
    for chunk in CHUNKS:
        times = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            scan(hidden, head, None, 0, True, Settings(chunk))
            times.append(time.perf_counter() - began)
        seconds[chunk] = min(times[1:])
        best = chunk if seconds[chunk] < 0.97 * seconds[best] else best
    return Settings(best)


# --- what is known from the log-sum and a few scores ------------------------------------------------------------------

def nll(hidden: torch.Tensor, head: Head, targets: torch.Tensor, weights: torch.Tensor | None = None, z: float = 0.0
        ) -> torch.Tensor:
    """[n] weight x (-log softmax[target] + z log_sum²); 0 where the target is -100, on which no work is done.

    The second term (PaLM, 2022) keeps the log-sum near 0. targets [n] ids, weights [n].
    """
    kept = targets != MASKED
    everything = bool(kept.all())
    at, target = (hidden, targets) if everything else (hidden[kept], targets[kept])
    total, picked, _ = _picked(at, head, target[:, None])
    losses = total - picked[:, 0]
    if z:
        losses = losses + z * total.square()
    if not everything:
        losses = losses.new_zeros(len(targets)).masked_scatter(kept, losses)
    return losses if weights is None else losses * weights


def log_sum(hidden: torch.Tensor, head: Head) -> torch.Tensor:
    """[n] log of the sum of exp(scores)."""
    return _picked(hidden, head, torch.empty(len(hidden), 0, dtype=torch.long, device=hidden.device))[0]


def log_probabilities(hidden: torch.Tensor, head: Head, ids: torch.Tensor) -> torch.Tensor:
    """[n, k] log-probabilities of ids [n, k]."""
    total, picked, _ = _picked(hidden, head, ids)
    return picked - total[:, None]


def topk(hidden: torch.Tensor, head: Head, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """([n, k] highest log-probabilities, falling; [n, k] their ids). Gradients flow through the former."""
    if not 1 <= k <= head.size:
        raise LuthierError(f"topk({k}) of a vocabulary of {head.size}: k must be from 1 to {head.size}.")
    total, picked, ids = _picked(hidden, head, None, k)
    return picked - total[:, None], ids


def _picked(hidden: torch.Tensor, head: Head, ids: torch.Tensor | None, best: int = 0) -> tuple[torch.Tensor, ...]:
    if ids is not None and ids.numel():
        low, high = ids.aminmax()
        if low < 0 or high >= head.size:
            raise LuthierError(f"Token id {int(low if low < 0 else high)} is outside a vocabulary of {head.size}.")
    found: tuple[torch.Tensor, ...] = Picked.apply(
        hidden.to(head.weight.dtype), head.weight, head.bias, ids, best, head.cap, settings)
    return found


# --- what needs two looks at the scores -------------------------------------------------------------------------------

def entropy(hidden: torch.Tensor, head: Head) -> torch.Tensor:
    """[n] -sum p log p, in nats."""
    return _looked(hidden, head, Entropy())


def kl(hidden: torch.Tensor, head: Head, other_hidden: torch.Tensor, other_head: Head) -> torch.Tensor:
    """[n] KL(other || self); `other` is constant, may have another width, and has the same vocabulary."""
    return _looked(hidden, head, Divergence(), other_hidden, other_head)


def mse(hidden: torch.Tensor, head: Head, other_hidden: torch.Tensor, other_head: Head) -> torch.Tensor:
    """[n] mean over the vocabulary of (scores - other scores)²; `other` as in `kl`."""
    return _looked(hidden, head, Distance(), other_hidden, other_head)


class Block(NamedTuple):
    """Scores before their cap in some columns of the vocabulary: ours and, where there is another model, theirs."""

    columns: slice
    raw: torch.Tensor
    theirs: torch.Tensor | None


class Mean:
    """Log-sum-exp of scores that come in blocks, and the mean of values under their soft-max."""

    def __init__(self, rows: int, like: torch.Tensor) -> None:
        self.top = like.new_full((rows,), torch.finfo(like.dtype).min)
        self.total = torch.zeros_like(self.top)
        self.moment = torch.zeros_like(self.top)

    def add(self, scores: torch.Tensor, values: torch.Tensor | None = None) -> None:
        """One more block; both [rows, columns]."""
        best = torch.maximum(self.top, scores.amax(-1))
        scale = (self.top - best).exp()
        masses = (scores - best[:, None]).exp_()
        self.total = self.total * scale + masses.sum(-1)
        if values is not None:
            self.moment = self.moment * scale + masses.mul_(values).sum(-1)
        self.top = best

    @property
    def log_sum(self) -> torch.Tensor:
        return self.top + self.total.log()

    @property
    def mean(self) -> torch.Tensor:
        return self.moment / self.total


Scored = Iterable[tuple[torch.Tensor, torch.Tensor]]


class Entropy:
    """-sum p log p = log_sum - sum p s. First look: both sums. Second: d/ds = -p (s - sum p s)."""

    def first(self, blocks: Scored, rows: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(value [n], what `second` needs [n, few])."""
        own = Mean(rows, like)
        for scores, _ in blocks:
            own.add(scores, _finite(scores))
        return own.log_sum - own.mean, torch.stack([own.log_sum, own.mean], 1)

    def second(self, scores: torch.Tensor, theirs: torch.Tensor, kept: torch.Tensor, size: int) -> torch.Tensor:
        """d value / d scores, a new tensor."""
        return (scores - kept[:, :1]).exp_().mul_(kept[:, 1:] - _finite(scores))


class Divergence:
    """sum q (log q - log p) = sum q (s' - s) - log_sum' + log_sum. d/ds = p - q."""

    def first(self, blocks: Scored, rows: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As in `Entropy`."""
        own, other = Mean(rows, like), Mean(rows, like)
        for scores, theirs in blocks:
            own.add(scores)
            other.add(theirs, _finite(theirs) - _finite(scores))
        return other.mean - other.log_sum + own.log_sum, torch.stack([own.log_sum, other.log_sum], 1)

    def second(self, scores: torch.Tensor, theirs: torch.Tensor, kept: torch.Tensor, size: int) -> torch.Tensor:
        """As in `Entropy`."""
        return (scores - kept[:, :1]).exp_().sub_((theirs - kept[:, 1:]).exp_())


class Distance:
    """Mean of (s - s')². d/ds = 2 (s - s') / size."""

    def first(self, blocks: Scored, rows: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As in `Entropy`."""
        total, size = like.new_zeros(rows), 0
        for scores, theirs in blocks:
            total += (scores - theirs).square_().sum(-1)
            size += scores.shape[1]
        return total / size, like.new_empty(rows, 0)

    def second(self, scores: torch.Tensor, theirs: torch.Tensor, kept: torch.Tensor, size: int) -> torch.Tensor:
        """As in `Entropy`."""
        return (scores - theirs).mul_(2 / size)


def _finite(scores: torch.Tensor) -> torch.Tensor:
    """-inf times a probability of 0 must be 0."""
    return scores.clamp(min=torch.finfo(scores.dtype).min)


class Looked(torch.autograd.Function):
    """One of `Entropy`, `Divergence`, `Distance` per position of hidden [n, width] -> [n].

    With a frozen head a chunk's scores are kept from the first look to the second, which makes the gradient of hidden;
    with a trained head the second look is in the backward, on scores made anew.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, cap: float | None,
                term: Any, other_hidden: torch.Tensor | None, other: Head | None, settings: Settings) -> torch.Tensor:
        head = Head(weight, bias, cap)
        trained = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ahead = ctx.needs_input_grad[0] and not trained
        like = wide(hidden[:0])
        values = like.new_empty(len(hidden))
        gradient = torch.empty_like(hidden, dtype=like.dtype) if ahead else None
        stats = []
        settings = Settings(min(settings.chunk, max(8, KEPT // head.size)), settings.compiled)
        for rows in row_chunks(len(hidden), settings):
            theirs = None if other_hidden is None else other_hidden[rows]
            blocks: Iterable[Block] = _blocks(hidden[rows], head, theirs, other)
            blocks = list(blocks) if gradient is not None else blocks
            count = rows.stop - rows.start
            values[rows], kept = term.first(((_ours(b, head), _theirs(b, other)) for b in blocks), count, like)
            stats.append(kept)
            if gradient is not None:
                total = gradient[rows].zero_()
                for block in blocks:
                    scores, slope = capped(wide(block.raw), cap)
                    d = term.second(scores, _theirs(block, other), kept, head.size)
                    total += (d if slope is None else d.mul_(slope)).to(weight.dtype) @ weight[block.columns]
        ctx.save_for_backward(hidden, weight, bias, torch.cat(stats) if stats else None, gradient, other_hidden)
        ctx.term, ctx.cap, ctx.other, ctx.settings = term, cap, other, settings
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, stats, gradient, other_hidden = ctx.saved_tensors
        none = (None,) * 5
        if gradient is not None:
            return (gradient * upstream[:, None]).to(hidden.dtype), None, None, *none

        def slope_of(rows: slice, columns: slice, scores: torch.Tensor) -> torch.Tensor:
            theirs = scores if ctx.other is None else ctx.other.scores(other_hidden[rows], columns)
            found: torch.Tensor = ctx.term.second(scores, theirs, stats[rows], len(weight))
            return found.mul_(upstream[rows, None])

        return *push(hidden, Head(weight, bias, ctx.cap), slope_of, ctx.needs_input_grad[:3], ctx.settings), *none


def _blocks(hidden: torch.Tensor, head: Head, other_hidden: torch.Tensor | None, other: Head | None) -> Iterator[Block]:
    for columns in column_blocks(head.size, len(hidden), hidden.device):
        theirs = None if other is None or other_hidden is None else other.raw(other_hidden, columns)
        yield Block(columns, head.raw(hidden, columns), theirs)


def _ours(block: Block, head: Head) -> torch.Tensor:
    return capped(wide(block.raw), head.cap)[0]


def _theirs(block: Block, other: Head | None) -> torch.Tensor:
    """The other model's scores; where there is none, our own raw ones stand in and are not read."""
    return block.raw if block.theirs is None or other is None else capped(wide(block.theirs), other.cap)[0]


def _looked(hidden: torch.Tensor, head: Head, term: Any, other_hidden: torch.Tensor | None = None,
            other: Head | None = None) -> torch.Tensor:
    if other is not None and other_hidden is not None:
        if other.size != head.size or len(other_hidden) != len(hidden):
            raise LuthierError(f"{len(hidden)} positions x {head.size} scores can't be compared with {len(other_hidden)} x "
                               f"{other.size}: both models need the same positions and the same vocabulary.")
        other = Head(other.weight.detach(), None if other.bias is None else other.bias.detach(), other.cap)
        other_hidden = other_hidden.detach().to(other.weight.dtype)
    found: torch.Tensor = Looked.apply(
        hidden.to(head.weight.dtype), head.weight, head.bias, head.cap, term, other_hidden, other, settings)
    return found
