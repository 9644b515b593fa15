"""Kept states: what leaves the frozen layers of a model, for every row of a training, in a mapped file.

Rows are known by their token ids. They are computed without gradients and in evaluation mode, always in the same
groups, so that a filling which was stopped goes on with the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from luthier.core.identity import digest
from luthier.core.kinds import Features, Tokens
from luthier.core.step import Progress
from luthier.engine.activation_cache import ActivationCache
from luthier.engine.batches import TokenBatch, by_length, collate, packs_of
from luthier.engine.layers import Skip, Stack, hidden_of, standing_in

if TYPE_CHECKING:
    from luthier.engine.loop import Task
    from luthier.engine.models import Model
    from luthier.engine.output import Output

# Rows and tokens that go through the lower layers at once, and rows that are sorted by length together.
GROUP_ROWS, GROUP_TOKENS, WINDOW_ROWS = 64, 2048, 256
# Rows of the first group: the proof that states from the file are as good is made on these.
PROOF_ROWS = 8


@dataclass
class KeptStates:
    """States of `rows` (ids by name) that leave the first `below` layers of `stack`.

    ask: the policy on a batch, all layers, evaluation mode. packed: whether it packs rows.

    Raises:
        OSError: no room on disk.
    """

    model: Model
    stack: Stack
    below: int
    rows: dict[bytes, list[int]]
    ask: Callable[[TokenBatch], Output]
    packed: bool
    folder: Path
    progress: Progress

    def __post_init__(self) -> None:
        self._slots = {name: i for i, name in enumerate(self.rows)}
        dtype = next(self.model.module.parameters()).dtype
        key = digest({"base": self.model.base.identity, "frozen": contents_of(self.stack, self.below),
                      "rows": hashlib.sha256(b"".join(self.rows)).hexdigest(), "stack": self.stack.name,
                      "layer": self.below, "dtype": str(dtype), "packed": self.packed,
                      "groups": [GROUP_ROWS, GROUP_TOKENS, WINDOW_ROWS, PROOF_ROWS]})
        self.file = ActivationCache(self.folder, key, [len(r) for r in self.rows.values()], self.model.width, dtype)

    def fill(self, most_groups: int | None = None) -> list[list[int]]:
        """Compute the rows that are missing; returns the rows of the first group."""
        rows = list(self.rows.values())
        groups = list(self._groups([len(r) for r in rows]))
        done = 0
        for group in groups[:most_groups]:
            done += len(group)
            missing = set(self.file.missing(group))
            if missing:
                # All of the group: alone, a row would be computed with other roundings.
                for row, states in zip(group, self._compute([rows[r] for r in group]), strict=True):
                    if row in missing:
                        self.file.write(row, states)
                self.progress(done, len(rows), "rows below the trained layers")
        self.file.flush()
        return [rows[r] for r in groups[0]]

    def known(self, inputs: TokenBatch, place: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
        """[*shape, width] states of these inputs at their places, or None when a row has none."""
        if inputs.decoder_ids is not None or not inputs.only_tokens:
            return None
        ids, lengths = inputs.ids.cpu().numpy(), inputs.mask.sum(1).tolist()
        slots = [self._slots.get(name_of(row[:n])) for row, n in zip(ids, lengths, strict=True)]
        found = [s for s in slots if s is not None]
        if len(found) < len(slots):
            return None
        return laid_out(self.file.read(found).to(place.device), place[inputs.mask.bool()], shape)

    def skip(self, known: Callable[[], torch.Tensor]) -> Callable[[nn.Module, int], nn.Module]:
        """What makes a stand-in that answers with `known`."""
        as_tuple = self.stack.answers == "tuple"
        return lambda layer, place: Skip(layer, known, as_tuple)

    def _groups(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Row numbers that are computed together: the rows of the proof, then windows cut like batches."""
        cut = packs_of if self.packed else by_length
        starts = [0, *range(PROOF_ROWS, len(lengths), WINDOW_ROWS), len(lengths)]
        for begin, end in pairwise(starts):
            for group in cut(lengths[begin:end], GROUP_ROWS, GROUP_TOKENS):
                yield [begin + place for place in group]

    def _compute(self, rows: Sequence[list[int]]) -> list[torch.Tensor]:
        """[tokens, width] of each row."""
        batch = batch_of(self.model, rows)
        caught: list[torch.Tensor] = []
        with ExitStack() as block:
            last = self.stack.layers[self.below - 1]
            block.callback(last.register_forward_hook(lambda m, a, answer: caught.append(hidden_of(answer))).remove)
            above = range(self.below, len(self.stack.layers))
            block.enter_context(standing_in(self.stack, above, self.skip(lambda: caught[0])))
            block.enter_context(torch.no_grad())
            output = self.ask(batch)
        assert output.place is not None
        flat = caught[0].flatten(0, 1)[output.place[batch.mask.bool()]]
        return list(flat.split([len(r) for r in rows]))


def batch_of(model: Model, rows: Sequence[list[int]]) -> TokenBatch:
    """Rows of ids as a batch in which nothing is learned."""
    features: list[Features] = [{"input": Tokens(ids, [False] * len(ids))} for ids in rows]
    batch = collate(features, [""] * len(rows), model.tokenizer.pad_token_id or 0, model.device)["input"]
    assert isinstance(batch, TokenBatch)
    return batch


def laid_out(states: torch.Tensor, where: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """[*shape, width]: `states` [tokens, width] at the places `where` [tokens], zero elsewhere.

    Where rows share a place (a common beginning), the first row's states stand there, whatever the order of writing.
    """
    order = torch.arange(len(where), device=where.device)
    if len(where) == shape.numel() and torch.equal(where, order):
        return states.view(*shape, -1)
    first = torch.full((shape.numel(),), len(where), device=where.device).scatter_reduce_(0, where, order, "amin")
    return torch.cat([states, states.new_zeros(1, states.shape[1])]).index_select(0, first).view(*shape, -1)


def sequences_of(tasks: Iterable[Task]) -> dict[bytes, list[int]]:
    """Every different sequence of one side and of nothing but tokens, in order of first use, by the name of its ids."""
    parts = (part for task in tasks for features in task.rows for part in features.values())
    return {name_of(part.ids): part.ids for part in parts
            if isinstance(part, Tokens) and part.decoder_ids is None and not part.tensors
            and not part.pieces}


def name_of(ids: Any) -> bytes:
    """16 bytes that stand for these token ids."""
    return hashlib.blake2b(np.asarray(ids, np.int64).tobytes(), digest_size=16).digest()


def contents_of(stack: Stack, below: int) -> str:
    """Hash of every number that the states depend on besides the tokens."""
    found = {id(t): t for m in stack.below(below) for t in (*m.parameters(), *m.buffers())}
    state = hashlib.blake2b(digest_size=16)
    for tensor in found.values():
        state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
