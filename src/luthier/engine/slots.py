"""Slots: keys and values of requests that are being read and written, and the layouts that use them.

A `Lane` holds requests that begin with the same tokens: keys and values of the beginning once, and of what follows a
row for each request, with room for what is still to be written. `Reading` is the layout of prompts in one pack whose
keys and values go into their rows; `Writing` is the layout of one new token for every row of some lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from luthier.engine.packing import Bucket, Packed, Segment

Pair = tuple[torch.Tensor, torch.Tensor]


class Lane:
    """Requests with a common beginning (which may be empty). `lengths` are the own tokens of each row so far.

    `room` is how many own tokens a row will have at most; it may grow. A `twin` has read the same beginning: its keys
    and values serve both.
    """

    def __init__(self, beginning: Sequence[int] = (), twin: Lane | None = None) -> None:
        self.beginning = list(beginning)
        self.lengths: list[int] = []
        self.rows, self.room = 0, 0
        # By layer: [key heads, tokens, width].
        self._first: dict[int, Pair] = twin._first if twin else {}
        self._own: dict[int, Pair] = {}  # by layer: [rows, key heads, room, width]

    def reserve(self, rows: int, room: int) -> None:
        """Make room for `rows` rows of `room` tokens; what is there stays."""
        if rows <= self.rows and room <= self.room:
            return
        self.rows, self.room = max(rows, self.rows), max(room, self.room)
        for layer, pair in self._own.items():
            grown = tuple(x.new_zeros(self.rows, x.shape[1], self.room, x.shape[3]) for x in pair)
            for new, old in zip(grown, pair, strict=True):
                new[:old.shape[0], :, :old.shape[2]] = old
            self._own[layer] = grown  # type: ignore[assignment]

    def begin(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep the beginning's keys and values [tokens, key heads, width]."""
        self._first[layer] = (key.transpose(0, 1).contiguous(), value.transpose(0, 1).contiguous())

    def write(self, layer: int, rows: torch.Tensor, at: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep keys and values [tokens, key heads, width] of the tokens `at` of `rows`."""
        if layer not in self._own:
            self._own[layer] = tuple(  # type: ignore[assignment]
                x.new_zeros(self.rows, x.shape[1], self.room, x.shape[2]) for x in (key, value))
        for kept, new in zip(self._own[layer], (key, value), strict=True):
            kept[rows, :, at] = new

    def first(self, layer: int) -> Pair:
        """Keys and values of the beginning, [key heads, tokens, width] each."""
        return self._first[layer]

    def own(self, layer: int, seen: int) -> Pair:
        """Keys and values of all rows' first `seen` own tokens, [rows * key heads, seen, width] each."""
        key, value = self._own[layer]
        rows = len(self.lengths) * key.shape[1]
        return (key.flatten(0, 1)[:rows, :seen], value.flatten(0, 1)[:rows, :seen])

    def empty(self) -> None:
        """Give the memory of all rows back; the beginning stays."""
        self.lengths, self._own = [], {}
        self.rows, self.room = 0, 0

    def leave(self, row: int) -> None:
        """Give a row back; the last row takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            for pair in self._own.values():
                for kept in pair:
                    kept[row] = kept[last]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()


class Reading(Packed):
    """Prompts of one lane in a pack: row `i` of the pack is kept in row `rows[i]` of the lane.

    With `rows` None the pack is one segment, the lane's beginning.
    """

    def __init__(self, lane: Lane, lengths: Sequence[int], rows: Sequence[int] | None, device: torch.device) -> None:
        parent = Segment(0, len(lane.beginning)) if rows is not None and lane.beginning else None
        segments, start = [], 0
        for length in lengths:
            segments.append(Segment(start, length, parent))
            start += length
        super().__init__(segments, device)
        self.lane = lane
        self.kept = None
        if rows is not None:
            counts = torch.tensor(lengths)
            self.kept = (torch.repeat_interleave(torch.tensor(rows), counts).to(device),
                         torch.cat([torch.arange(n) for n in lengths]).to(device))

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float | None,
               window: int | None, dropout: float, causal: bool) -> torch.Tensor:
        """See `Layout.attend`; keeps keys and values on the way."""
        flat = (key[0].transpose(0, 1), value[0].transpose(0, 1))
        if self.kept is None:
            self.lane.begin(layer, *flat)
        else:
            self.lane.write(layer, *self.kept, *flat)
        return super().attend(layer, query, key, value, scaling=scaling, window=window, dropout=dropout, causal=causal)

    def beginning(self, bucket: Bucket, layer: int, key: torch.Tensor, value: torch.Tensor) -> Pair:
        """The lane's, not the pack's."""
        return self.lane.first(layer)


class Writing:
    """One new token for every row of `lanes`, in order; its keys and values are kept.

    Scores are taken of the beginning for all rows of a lane in one product, and of what follows row by row.
    """

    def __init__(self, lanes: Sequence[Lane], device: torch.device) -> None:
        self.lanes = lanes
        self.device = device
        self._masks: dict[tuple[int, int | None], torch.Tensor | None] = {}
        self._places = [(torch.arange(len(lane.lengths), device=device), torch.tensor(lane.lengths, device=device))
                        for lane in lanes]

    @cached_property
    def positions(self) -> torch.Tensor:
        """[1, rows] position of each new token."""
        return torch.cat([at + len(lane.beginning) for lane, (_, at) in zip(self.lanes, self._places, strict=True)])[None]

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float | None,
               window: int | None, dropout: float, causal: bool) -> torch.Tensor:
        """See `Layout.attend`; the batch dimension is 1 and every row has one token."""
        asked = query[0].transpose(0, 1) * (scaling or query.shape[-1]**-0.5)
        keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
        out, begin = [], 0
        for number, (lane, (rows, at)) in enumerate(zip(self.lanes, self._places, strict=True)):
            end = begin + len(lane.lengths)
            lane.write(layer, rows, at, keys[begin:end], values[begin:end])
            out.append(self._lane(number, layer, asked[begin:end], window))
            begin = end
        return (out[0] if len(out) == 1 else torch.cat(out))[None]

    def _lane(self, number: int, layer: int, query: torch.Tensor, window: int | None) -> torch.Tensor:
        """[rows, heads, width] answers to [rows, heads, width] queries."""
        lane = self.lanes[number]
        rows, heads, width = query.shape
        seen = max(lane.lengths) + 1
        key, value = lane.own(layer, seen)
        groups = key.shape[0] // rows
        # Query heads that share a key head are one matrix.
        asked = query.view(rows, groups, heads // groups, width)
        scores = torch.bmm(asked.flatten(0, 1), key.transpose(1, 2)).view(rows, groups, heads // groups, seen)
        mask = self._mask(number, window, scores.dtype)
        if lane.beginning:
            first, said = lane.first(layer)
            before = first.shape[1]
            flat = asked.transpose(0, 1).reshape(groups, -1, width)
            head = torch.bmm(flat, first.transpose(1, 2)).view(groups, rows, heads // groups, before).transpose(0, 1)
            scores = torch.cat([head, scores], -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            over = weights[..., :before].transpose(0, 1).reshape(groups, -1, before)
            answer = torch.bmm(over, said).view(groups, rows, heads // groups, width).transpose(0, 1)
            answer = answer + torch.bmm(weights[..., before:].flatten(0, 1), value).view_as(answer)
        else:
            weights = (scores if mask is None else scores + mask).softmax(-1)
            answer = torch.bmm(weights.flatten(0, 1), value)
        return answer.reshape(rows, heads, width)

    def _mask(self, number: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """[rows, 1, 1, beginning + seen] to be added to the scores; None where every row sees everything."""
        lane = self.lanes[number]
        before, longest = len(lane.beginning), max(lane.lengths)
        if window is not None and before + longest < window:
            window = None
        if window is None and min(lane.lengths) == longest:
            return None
        key = (number, window)
        if key not in self._masks:
            at = torch.arange(before + longest + 1, device=self.device)[None]
            now = before + self._places[number][1][:, None]
            hidden = at > now
            if window is not None:
                hidden = hidden | (now - at >= window)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=self.device).masked_fill_(hidden, float("-inf"))
            self._masks[key] = mask[:, None, None]
        return self._masks[key]
