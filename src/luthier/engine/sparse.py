"""Sparse deltas: what a training changed at chosen entries of a model's tensors. They can be stored, applied and added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from luthier.core.errors import UserError

AT, BY = ":at", ":by"
Entries = tuple[torch.Tensor, torch.Tensor]


def largest(scores: Mapping[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """Masks of exactly `count` entries, those with the largest scores of all tensors together; ties as they come."""
    flat = torch.cat([s.flatten().float() for s in scores.values()])
    chosen = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    chosen[torch.topk(flat, count, sorted=False).indices] = True
    parts = chosen.split([s.numel() for s in scores.values()])
    return {name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


@dataclass(frozen=True)
class SparseDelta:
    """By tensor: flat indices [k], ascending, and float32 differences [k]."""

    entries: Mapping[str, Entries] = field(default_factory=dict)

    @classmethod
    def between(cls, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor],
                masks: Mapping[str, torch.Tensor]) -> SparseDelta:
        """The differences of `after` from `before` at the entries of the masks."""
        found = {}
        for name, mask in masks.items():
            at = mask.flatten().nonzero()[:, 0]
            moved = after[name].detach().flatten()[at].float() - before[name].detach().flatten()[at].float()
            if len(at):
                found[name] = at.cpu(), moved.cpu()
        return cls(found)

    def __len__(self) -> int:
        return sum(len(at) for at, _ in self.entries.values())

    def __add__(self, other: SparseDelta) -> SparseDelta:
        """Both changes together."""
        found = dict(self.entries)
        for name, (at, by) in other.entries.items():
            if name in found:
                own_at, own_by = found[name]
                both, places = torch.cat([own_at, at]).unique(return_inverse=True)
                at, by = both, torch.zeros(len(both)).index_add_(0, places, torch.cat([own_by, by]))
            found[name] = at, by
        return SparseDelta(found)

    def apply(self, weights: Mapping[str, torch.Tensor]) -> SparseDelta:
        """Add the differences; returns the old values, with which `put` reverts exactly (w + d - d is not always w).

        Raises:
            UserError: a tensor has no place in `weights`; nothing was changed.
        """
        for name, (at, _) in self.entries.items():
            if name not in weights or int(at.max()) >= weights[name].numel():
                raise UserError(f"The sparse delta does not fit: '{name}' has no place there.")
        old = {}
        for name, (at, by) in self.entries.items():
            flat = weights[name].detach().view(-1)
            here = at.to(flat.device)
            old[name] = at, flat[here].cpu()
            flat[here] = (flat[here].float() + by.to(flat.device)).to(flat.dtype)
        return SparseDelta(old)

    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Write the values themselves, such as those that `apply` gave back."""
        for name, (at, values) in self.entries.items():
            flat = weights[name].detach().view(-1)
            flat[at.to(flat.device)] = values.to(flat.device, flat.dtype)

    def tensors(self) -> dict[str, torch.Tensor]:
        """As tensors of a file."""
        return {f"{name}{end}": tensor for name, pair in self.entries.items()
                for end, tensor in zip((AT, BY), pair, strict=True)}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> SparseDelta:
        """The inverse of `tensors`; other tensors of the file are passed over."""
        names = [n.removesuffix(AT) for n in tensors if n.endswith(AT)]
        return cls({n: (tensors[f"{n}{AT}"], tensors[f"{n}{BY}"]) for n in names})
