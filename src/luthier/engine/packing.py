"""Packing: the rows of a batch as one sequence without padding, each row seeing itself alone.

The tokens of all rows lie one after another in [1, tokens], so that every linear layer works on real tokens only. In
the attention each row is a segment; segments of similar length are computed together. Rows that begin alike share one
segment for the common beginning, which is computed once: a segment with a `parent` sees all of the parent and, of
itself, what lies before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

# Segments at least this share of the longest one's length are computed together: in the attention of short rows a call
# costs more than the padding it saves.
SIMILAR = 0.5
# Queries times keys of a row up to which its scores are kept on a processor.
SHORT = 256 * 256
# A common beginning shorter than this is computed for every row: sharing it costs more than it saves.
SHARED_TOKENS = 8


@dataclass(frozen=True)
class Segment:
    """Tokens `start` to `start + length` of a pack, at positions from `position`; `parent` is seen whole."""

    start: int
    length: int
    parent: Segment | None = None

    @property
    def position(self) -> int:
        """Position of the first token in its row."""
        return self.parent.position + self.parent.length if self.parent else 0


class _Pad(torch.autograd.Function):
    """Rows of `flat` [tokens, ...] at `at`; every token of `flat` stands at exactly one place `back` of the result."""

    @staticmethod
    def forward(ctx: Any, flat: torch.Tensor, at: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        return flat.index_select(0, at)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return upstream.index_select(0, back), None, None


class _Unpad(torch.autograd.Function):
    """Rows of `padded` at `back`, each at most once: the rest gets a zero gradient."""

    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        ctx.shape = padded.shape
        return padded.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        (back,) = ctx.saved_tensors
        return upstream.new_zeros(ctx.shape).index_copy_(0, back, upstream), None


class Bucket:
    """Segments of similar length with the same parent, as places in the pack: [rows, longest], padded with place 0."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self.segments = segments
        self.parent = segments[0].parent
        self.longest = max(s.length for s in segments)
        self.even = all(s.length == self.longest for s in segments)
        self.places = _rectangle([range(s.start, s.start + s.length) for s in segments], device)
        self._masks: dict[tuple[int | None, bool, torch.dtype], torch.Tensor | None] = {}

    def mask(self, window: int | None, causal: bool, dtype: torch.dtype) -> torch.Tensor | None:
        """[rows, 1, queries, keys] to be added to the scores; None where a causal triangle, or nothing, says it all.

        Padding stands on the right: without a parent no real token of a causal row sees it.
        """
        before = self.segments[0].position
        if window is not None and before + self.longest <= window:
            window = None
        key = (window, causal, dtype)
        if key not in self._masks:
            plain = window is None and self.parent is None and (causal or self.even)
            self._masks[key] = None if plain else self._mask(window, causal, dtype)
        return self._masks[key]

    def _mask(self, window: int | None, causal: bool, dtype: torch.dtype) -> torch.Tensor:
        device, before = self.places.device, self.segments[0].position
        at = torch.arange(before + self.longest, device=device)
        seen = before + torch.tensor([s.length for s in self.segments], device=device)[:, None]
        # A query of the padding sees what the last real one sees: no row of the soft-max is empty.
        query = torch.minimum(at[None, before:], seen - 1)
        allowed = (at[None, None, :] < seen[:, :, None]).expand(-1, self.longest, -1)
        if causal:
            allowed = allowed & (at[None, None, :] <= query[:, :, None])
        if window is not None:
            allowed = allowed & ((query[:, :, None] - at[None, None, :]).abs() < window)
        return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))[:, None]


def _rectangle(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)


class Packed:
    """The layout of a pack: every segment sees its parent and itself, nothing else."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self.segments = segments
        self.tokens = sum(s.length for s in segments)
        self.device = device

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Segments grouped by parent and by length."""
        groups: list[list[Segment]] = []
        for segment in sorted(self.segments, key=lambda s: (s.parent.start if s.parent else -1, -s.length, s.start)):
            last = groups[-1] if groups else None
            if last and last[0].parent is segment.parent and segment.length >= SIMILAR * last[0].length:
                last.append(segment)
            else:
                groups.append([segment])
        return [Bucket(g, self.device) for g in groups]

    @cached_property
    def order(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`at` [padded]: the place of each token of all buckets; `back` [tokens]: where each token went.

        None where the buckets lie in the order of the pack and nothing is padded.
        """
        at = torch.cat([b.places.flatten() for b in self.buckets])
        if torch.equal(at, torch.arange(self.tokens, device=self.device)):
            return None
        back = torch.empty(self.tokens, dtype=torch.long)
        offset = 0
        for bucket in self.buckets:
            for row, segment in enumerate(bucket.segments):
                begin = offset + row * bucket.longest
                back[segment.start:segment.start + segment.length] = torch.arange(begin, begin + segment.length)
            offset += bucket.places.numel()
        return at, back.to(self.device)

    def positions(self) -> torch.Tensor:
        """[1, tokens] position of each token in its row."""
        found = torch.empty(self.tokens, dtype=torch.long)
        for s in self.segments:
            found[s.start:s.start + s.length] = torch.arange(s.position, s.position + s.length)
        return found[None].to(self.device)

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float | None,
               window: int | None, dropout: float, causal: bool) -> torch.Tensor:
        """See `Layout.attend`; the batch dimension is 1."""
        flat = [x[0].transpose(0, 1) for x in (query, key, value)]
        padded = flat if self.order is None else [_Pad.apply(x, *self.order) for x in flat]
        out, begin = [], 0
        for bucket in self.buckets:
            rows = len(bucket.segments)
            end = begin + rows * bucket.longest
            q, k, v = (_heads(x[begin:end], rows) for x in padded)
            if bucket.parent:
                first, last = bucket.parent.start, bucket.parent.start + bucket.parent.length
                k, v = (torch.cat([_heads(x[first:last], 1).expand(rows, -1, -1, -1), own], 2)
                        for x, own in ((flat[1], k), (flat[2], v)))
            mask = bucket.mask(window, causal, q.dtype)
            answer = attention(q, k, v, mask, causal and mask is None, scaling, dropout)
            out.append(answer.transpose(1, 2).reshape(rows * bucket.longest, *flat[0].shape[1:]))
            begin = end
        joined = out[0] if len(out) == 1 else torch.cat(out)
        return (joined if self.order is None else _Unpad.apply(joined, self.order[1]))[None]


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, causal: bool,
              scaling: float | None, dropout: float) -> torch.Tensor:
    """Soft-max attention; query [rows, heads, tokens, width], key and value [rows, key heads, seen, width].

    On a processor, two batched matrix products and a soft-max are several times as fast for short rows as the fused
    kernel, whose backward works in small tiles (measured at 61 tokens, 4 heads, width 256: 7 against 27 ms); beyond
    `SHORT` the scores would cost memory, and the fused kernel keeps none.
    """
    rows, heads, tokens, width = query.shape
    groups, seen = key.shape[1], key.shape[2]
    if query.device.type != "cpu" or tokens * seen > SHORT:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling,
                                            is_causal=causal, enable_gqa=groups != heads)
    # Query heads that share a key head are one longer matrix.
    asked = query.reshape(rows * groups, heads // groups * tokens, width) * (scaling or width**-0.5)
    scores = torch.bmm(asked, key.reshape(rows * groups, seen, width).transpose(1, 2)).view(rows, heads, tokens, seen)
    if causal:
        triangle = torch.ones(tokens, seen, dtype=torch.bool, device=query.device).triu_(1)
        mask = torch.zeros(tokens, seen, dtype=query.dtype, device=query.device).masked_fill_(triangle, float("-inf"))
    weights = (scores if mask is None else scores.add_(mask)).softmax(-1)
    if dropout:
        weights = torch.dropout(weights, dropout, True)
    out = torch.bmm(weights.view(rows * groups, -1, seen), value.reshape(rows * groups, seen, width))
    return out.view(rows, heads, tokens, width)


def _heads(flat: torch.Tensor, rows: int) -> torch.Tensor:
    """[rows * tokens, heads, width] -> [rows, heads, tokens, width]."""
    return flat.reshape(rows, -1, *flat.shape[1:]).transpose(1, 2)


@dataclass
class Pack:
    """A batch without padding: `ids` and `positions` [1, tokens], and where each token of each row went.

    `place` [rows, longest] is the place in the pack of a row's token (0 for padding).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    layout: Packed
    place: torch.Tensor


def pack(ids: torch.Tensor, mask: torch.Tensor, share: bool = True) -> Pack:
    """Rows padded on the right, ids and mask [rows, longest], as a pack; with `share`, common beginnings once."""
    rows = [row[:n].tolist() for row, n in zip(ids.cpu(), mask.sum(1).tolist(), strict=True)]
    shared = shared_beginnings(rows) if share and len(rows) > 1 else [0] * len(rows)
    segments: list[Segment] = []
    place = torch.zeros(ids.shape, dtype=torch.long)
    known: dict[tuple[int, ...], Segment] = {}
    end = 0
    for number, (row, common) in enumerate(zip(rows, shared, strict=True)):
        parent = None
        if common:
            beginning = tuple(row[:common])
            parent = known.get(beginning)
            if parent is None:
                known[beginning] = parent = Segment(end, common)
                segments.append(parent)
                end += common
            place[number, :common] = torch.arange(parent.start, parent.start + common)
        segments.append(Segment(end, len(row) - common, parent))
        place[number, common:len(row)] = torch.arange(end, end + len(row) - common)
        end += len(row) - common
    layout = Packed(segments, ids.device)
    flat = torch.zeros(end, dtype=torch.long, device=ids.device)
    place = place.to(ids.device)
    real = mask.bool()
    flat[place[real]] = ids[real]
    return Pack(flat[None], layout.positions(), layout, place)


def shared_beginnings(rows: Sequence[Sequence[int]]) -> list[int]:
    """How many first tokens of each row stand in a segment shared with other rows; 0 where sharing doesn't pay.

    Rows in order of their tokens lie beside those they begin like. A group grows while its common beginning keeps
    `SHARED_TOKENS` and the tokens saved do not become fewer; every row keeps one token of its own.
    """
    order = sorted(range(len(rows)), key=lambda i: list(rows[i]))
    found = [0] * len(rows)
    group: list[int] = []
    common = 0

    def close() -> None:
        if len(group) > 1 and common >= SHARED_TOKENS:
            for i in group:
                found[i] = common

    for i in order:
        if group:
            now = min(common, _alike(rows[group[-1]], rows[i])) if len(group) > 1 else _alike(rows[group[-1]], rows[i])
            now = min(now, len(rows[i]) - 1, min(len(rows[g]) for g in group) - 1)
            if now >= SHARED_TOKENS and now * len(group) >= common * (len(group) - 1):
                group.append(i)
                common = now
                continue
            close()
        group, common = [i], 0
    close()
    return found


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    n = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        n += 1
    return n
