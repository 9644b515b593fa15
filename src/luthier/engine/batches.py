"""Batches: features of several examples as padded, named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from luthier.core.kinds import Features, Tokens


@dataclass
class TokenBatch:
    """Sequences of one name, padded on the right.

    ids, mask, targets: [batch, tokens]; `targets` marks learned positions, of the decoder where there is one.
    decoder_ids, decoder_mask: [batch, target tokens] or None. tensors: other modalities, batch first. pieces: by name one
    tensor a row [pieces of the row, …], None where it has none.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    decoder_ids: torch.Tensor | None = None
    decoder_mask: torch.Tensor | None = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    pieces: dict[str, list[torch.Tensor | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def only_tokens(self) -> bool:
        """Whether its ids say all there is to see of it."""
        return not self.tensors and all(piece is None for rows in self.pieces.values() for piece in rows)

    def arguments(self) -> dict[str, torch.Tensor]:
        """Other modalities as a model's forward takes them: pieces of all rows one after another."""
        there = {name: [p for p in rows if p is not None] for name, rows in self.pieces.items()}
        return {**self.tensors, **{name: torch.cat(found) for name, found in there.items() if found}}

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, of both sides where there are two."""
        own = self.mask.sum(1)
        return (own if self.decoder_mask is None else own + self.decoder_mask.sum(1)).tolist()

    def narrow(self, rows: Sequence[int]) -> TokenBatch:
        """Some rows, cut to the longest of them."""
        at = list(rows)
        width = int(self.mask[at].sum(1).max())
        ids, mask = self.ids[at, :width], self.mask[at, :width]
        tensors = {name: tensor[at] for name, tensor in self.tensors.items()}
        pieces = {name: [found[i] for i in at] for name, found in self.pieces.items()}
        if self.decoder_ids is None or self.decoder_mask is None:
            return TokenBatch(ids, mask, self.targets[at, :width], tensors=tensors, pieces=pieces)
        wide = int(self.decoder_mask[at].sum(1).max())
        decoder_ids, decoder_mask = self.decoder_ids[at, :wide], self.decoder_mask[at, :wide]
        return TokenBatch(ids, mask, self.targets[at, :wide], decoder_ids, decoder_mask, tensors, pieces)

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return int(self.targets.sum())

    @property
    def tokens(self) -> int:
        """How many tokens there are, padding left out."""
        return int(self.mask.sum()) + (int(self.decoder_mask.sum()) if self.decoder_mask is not None else 0)


def join(*parts: TokenBatch) -> TokenBatch:
    """The rows of several batches as one, in order, so that they go through a model together."""
    def rows(name: str) -> torch.Tensor | None:
        given = [getattr(p, name) for p in parts]
        if given[0] is None:
            return None
        width = max(t.shape[1] for t in given)
        return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in given])

    ids, mask, targets = rows("ids"), rows("mask"), rows("targets")
    assert ids is not None and mask is not None and targets is not None
    tensors = {name: torch.cat([p.tensors[name] for p in parts]) for name in parts[0].tensors}
    names = {name for p in parts for name in p.pieces}
    pieces = {name: [found for p in parts for found in p.pieces.get(name, [None] * len(p))] for name in sorted(names)}
    return TokenBatch(ids, mask, targets, rows("decoder_ids"), rows("decoder_mask"), tensors, pieces)


Batch = dict[str, Any]
# Stands where a row's list of numbers is shorter than another's.
ABSENT = -1
# Rows at least this share of the longest one's length go through the model together when they must be padded.
SIMILAR = 0.7


def collate(rows: Sequence[Features], ids: Sequence[str], pad: int, device: torch.device | str = "cpu") -> Batch:
    """One batch: a `TokenBatch` for each named sequence, a tensor for each named number, and the rows' ids.

    Lists of numbers become [rows, longest], filled up with `ABSENT` where they are whole and with 0 where not.
    """
    batch: Batch = {"ids": list(ids)}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if isinstance(first, Tokens):
            batch[name] = _tokens(values, pad, device)  # type: ignore[arg-type]
        elif isinstance(first, tuple):
            batch[name] = _numbers(values, device)  # type: ignore[arg-type]
        else:
            kind = torch.long if isinstance(first, int) else torch.float32
            batch[name] = torch.tensor(values, dtype=kind, device=device)
    return batch


def _tokens(rows: Sequence[Tokens], pad: int, device: torch.device | str) -> TokenBatch:
    ids, mask = _padded([r.ids for r in rows], pad, device)
    decoder_ids = decoder_mask = None
    if rows[0].decoder_ids is not None:
        decoder_ids, decoder_mask = _padded([r.decoder_ids or [] for r in rows], pad, device)
    width = (ids if decoder_ids is None else decoder_ids).shape[1]
    targets = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        targets[i, :len(row.targets)] = torch.tensor(row.targets)
    tensors = {n: torch.stack([array(r.tensors[n]) for r in rows]).to(device) for n in rows[0].tensors}
    names = sorted({n for r in rows for n in r.pieces})
    pieces = {n: [array(r.pieces[n]).to(device) if n in r.pieces else None for r in rows] for n in names}
    return TokenBatch(ids, mask, targets.to(device), decoder_ids, decoder_mask, tensors, pieces)


def array(value: Any) -> torch.Tensor:
    """An array of numbers, or what becomes one when it is asked for, as a tensor."""
    return torch.as_tensor(np.asarray(value) if hasattr(value, "__array__") and not isinstance(value, torch.Tensor) else value)


def _numbers(rows: Sequence[tuple[float, ...]], device: torch.device | str) -> torch.Tensor:
    """[rows, longest] of lists of numbers, float32 where one of them is not whole."""
    if not any(isinstance(value, float) for row in rows for value in row):
        return _padded(rows, ABSENT, device)[0]  # type: ignore[arg-type]
    found = torch.zeros(len(rows), max(map(len, rows)))
    for i, row in enumerate(rows):
        found[i, :len(row)] = torch.tensor(row)
    return found.to(device)


def _padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, :len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, :len(row)] = 1
    return ids.to(device), mask.to(device)


def tokens_in(batch: Mapping[str, Any]) -> int:
    """Tokens of all sequences of a batch, padding left out."""
    return sum(part.tokens for part in batch.values() if isinstance(part, TokenBatch))


def lengths_of(batch: Batch) -> list[int]:
    """Tokens of each row's longest sequence; 1 for each row of a batch without sequences."""
    found = [part.lengths for part in batch.values() if isinstance(part, TokenBatch)]
    return [max(row) for row in zip(*found, strict=True)] if found else [1] * len(batch["ids"])


def narrow(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch, without the padding that the others needed."""
    out: Batch = {}
    for name, part in batch.items():
        if isinstance(part, TokenBatch):
            out[name] = part.narrow(rows)
        elif isinstance(part, torch.Tensor):
            out[name] = part[list(rows)]
        else:
            out[name] = [part[i] for i in rows]
    return out


def by_length(lengths: Sequence[int], most_rows: int, most_tokens: int) -> list[list[int]]:
    """Places of rows in groups of similar length, for models that need padding: little work is done on it.

    A group has at most `most_rows` rows and `most_tokens` tokens, padding counted; a longer row goes alone.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        last = groups[-1] if groups else None
        if last and len(last) < most_rows and lengths[place] >= SIMILAR * lengths[last[0]] and \
                lengths[last[0]] * (len(last) + 1) <= most_tokens:
            last.append(place)
        else:
            groups.append([place])
    return groups


def packs_of(lengths: Sequence[int], most_rows: int, most_tokens: int) -> list[list[int]]:
    """Places of rows in as few groups as the limits allow, of about equally many tokens, for models that pack.

    Longest row first, each to the lightest group that has room; a row longer than `most_tokens` goes alone.
    """
    groups: list[list[int]] = []
    weights: list[int] = []
    wanted = max(math.ceil(len(lengths) / most_rows), math.ceil(sum(lengths) / most_tokens))
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        room = [g for g in range(len(groups))
                if len(groups[g]) < most_rows and weights[g] + lengths[place] <= most_tokens]
        if room and len(groups) >= wanted:
            lightest = min(room, key=lambda g: (weights[g], g))
            groups[lightest].append(place)
            weights[lightest] += lengths[place]
        else:
            groups.append([place])
            weights.append(lengths[place])
    return [sorted(g) for g in groups]
