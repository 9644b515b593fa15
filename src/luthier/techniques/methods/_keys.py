"""Keys of a pool: which entry each row of a batch takes.

    q = mean of the row's embedded inputs,   sim_j = cos(q, k_j),   j* = argmax sim_j

While training used entries are left to the tasks that used them: sim' = (sim + 1) / 2 inv, inv_j = 1 / (f_j + 1e-6) divided
by its sum, f_j the share of the rows of earlier trainings that took j.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from luthier.core.errors import UserError
from luthier.engine.routing import read

SMALLEST = 1e-6  # added to the share of an entry's rows


@dataclass(frozen=True)
class Picked:
    """What the rows of a forward take: modulated `rows` (None: all `count` of them) by modulator `there[at]`."""

    count: int
    rows: torch.Tensor | None
    there: list[int]
    at: torch.Tensor

    @classmethod
    def of(cls, choice: torch.Tensor, reserved: int) -> Picked:
        """From entries [rows]."""
        modulated = choice >= reserved
        rows = None if bool(modulated.all()) else modulated.nonzero().flatten()
        there, at = (choice[modulated] - reserved).unique(return_inverse=True)
        return cls(len(choice), rows, there.tolist(), at)


class Keys(nn.Module):
    """The keys of a pool, and which entry each row of the forward that is made takes (`picked`).

    It hangs at `asked`, the module that embeds the inputs: a model's trunk, of two sides the encoder. What is written later
    stays with the entries of its prompt.
    """

    counts: torch.Tensor

    def __init__(self, entries: int, reserved: int, asked: nn.Module) -> None:
        super().__init__()
        embedding = asked.get_input_embeddings().weight  # type: ignore[operator]
        blank = embedding.new_empty(embedding.shape[1])
        self.entries = nn.ParameterList(torch.empty_like(blank).uniform_(-1, 1) for _ in range(entries))
        self.reserved = reserved
        self.register_buffer("counts", torch.zeros(entries, dtype=torch.long, device=embedding.device))
        self.inverse: torch.Tensor | None = None
        self.takes: int | Sequence[int] | Callable[[], int] | None = None
        self.picked: Picked | None = None
        self.__dict__["asked"] = asked  # not through nn.Module: it holds this one
        asked.register_forward_pre_hook(self.before, with_kwargs=True)

    def before(self, asked: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Choose for the rows that are about to be read.

        Raises:
            NotImplementedError: rows in one pack, where an entry can't be given to each.
        """
        if named.get("layout") is not None:
            raise NotImplementedError("rows that take entries of a pool are not packed")
        cache = named.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            return
        ids = given[0] if given else named.get("input_ids")
        seen = ids if ids is not None else named["inputs_embeds"]
        if seen.is_meta:  # a plan knows no values; that all rows take one entry costs what any choice does
            self.picked = Picked(len(seen), None, [0], torch.zeros(len(seen), dtype=torch.long, device="meta"))
            return
        rows = read()
        ours = rows is not None and rows.decoder_ids is None and (ids is None or rows.ids is ids)
        targets = rows.targets if rows is not None and ours else None
        mask = named.get("attention_mask")
        more = {n: v for n, v in named.items() if n in getattr(asked, "reads", ())}
        self.picked = Picked.of(self.choose(self.query(ids, mask, targets, named.get("inputs_embeds"), more)), self.reserved)

    @torch.no_grad()
    def query(self, ids: torch.Tensor | None, mask: torch.Tensor | None, targets: torch.Tensor | None = None,
              embeds: torch.Tensor | None = None, more: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """[rows, width] mean of the embedded inputs, float32: of what is asked, that is before the first learned token.

        A row that is learned from its beginning counts whole. A model may say itself what of its inputs counts (`queried`).

        Raises:
            UserError: a row of nothing but padding.
        """
        if hasattr(self.asked, "queried"):
            embeds, at = self.asked.queried(ids, mask, **(more or {}))  # type: ignore[operator]
        else:
            if embeds is None:
                embeds = self.asked.get_input_embeddings()(ids)  # type: ignore[operator, union-attr, attr-defined]
            at = torch.ones(embeds.shape[:2], device=embeds.device, dtype=torch.bool) if mask is None else mask.bool()
            if targets is not None:
                earlier = at & ~(targets.cumsum(1) > 0)
                early = earlier.sum(1, keepdim=True) > 1  # the start token alone asks nothing
                at = torch.where(early, earlier, at)
        empty = (at.sum(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise UserError(f"l2m: row {empty[0]} of a batch of {len(at)} is nothing but padding, and has no query. Leave "
                            "empty rows out.")
        kept = at.unsqueeze(-1).float()
        return (embeds.float() * kept).sum(1) / kept.sum(1)

    @torch.no_grad()
    def choose(self, query: torch.Tensor) -> torch.Tensor:
        """[rows] entries. While training, shares of earlier trainings count against an entry."""
        if self.takes is not None:
            given = torch.as_tensor(self.takes() if callable(self.takes) else self.takes, device=query.device)
            if given.dim() and len(given) != len(query):
                raise UserError(f"l2m: {len(given)} entries are given to {len(query)} rows.")
            return given.expand(len(query))
        keys = torch.stack([key.float() for key in self.entries])
        likeness = nn.functional.cosine_similarity(query[:, None], keys[None], dim=-1)
        if self.training and self.inverse is not None:
            likeness = (likeness + 1) / 2 * self.inverse
        return likeness.argmax(1)

    def likeness(self, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """[rows] cos(q, k) of what each row of a `TokenBatch` takes, with gradients for these keys, and the entries."""
        more = {n: v for n, v in inputs.arguments().items() if n in getattr(self.asked, "reads", ())}
        targets = inputs.targets if inputs.decoder_ids is None else None
        query = self.query(inputs.ids, inputs.mask, targets, None, more)
        chosen = self.choose(query)
        there, at = chosen.unique(return_inverse=True)
        keys = torch.stack([self.entries[j].float() for j in there.tolist()])
        return nn.functional.cosine_similarity(query, keys[at], dim=-1), chosen

    def penalise(self) -> None:
        """From now on the present shares count against entries; where no row has taken any, nothing does."""
        total = int(self.counts.sum())
        if total:
            inverse = 1 / (self.counts.double() / total + SMALLEST)
            self.inverse = (inverse / inverse.sum()).float()
