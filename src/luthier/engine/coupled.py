"""Coupled parts in micro-batches: the gradient of a whole batch whose rows see each other, in the memory of a few rows.

An objective says what its coupled part sees of each row (`represent`: tensors [rows, …] that depend on their own row
alone) and what it makes of all of them (`couple`). With r = represent(row; w) and L = couple(r_1 … r_n),

    dL/dw = sum over micro-batches of (dL/dr)ᵀ dr/dw + what couple reads of w itself

so three passes suffice: represent every micro-batch without gradients; the loss at the representations and its gradient
there; represent every micro-batch again, with gradients, and push the kept ones through it. Dropout of the third pass is
that of the first: each micro-batch seeds it by its own name. Source: Gao et al. 2021, "Scaling deep contrastive learning
batch size under memory limited setup" (GradCache).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from luthier.core.kinds import Objective
from luthier.engine.batches import Batch, by_length, lengths_of, narrow, packs_of

if TYPE_CHECKING:
    from luthier.engine.forward import Forward
    from luthier.engine.guards import Micro

Seen = dict[str, torch.Tensor]


def separable(objective: Objective) -> bool:
    """Whether the rows of a coupled objective may go through the model apart from each other."""
    return "coupled" in objective.parts.values() and type(objective).represent is not Objective.represent


@dataclass
class Gathered:
    """The representations of one whole batch as leaves: what `couple` reads, and where its gradient is collected."""

    seen: Seen
    again: Callable[[int], Seen]
    places: Sequence[Sequence[int]]

    def spread(self) -> None:
        """Push the gradients at the representations through the model, one micro-batch after the other."""
        for n, rows in enumerate(self.places):
            made = self.again(n)
            reached = [(tensor, self.seen[name].grad) for name, tensor in made.items()]
            pairs = [(tensor, grad[list(rows)].to(tensor.dtype)) for tensor, grad in reached if grad is not None]
            if pairs:
                torch.autograd.backward([tensor for tensor, _ in pairs], [grad for _, grad in pairs])


def gather(run: Forward, objective: Objective, batch: Batch, micro: Micro, seed: Callable[[str], object]) -> Gathered | None:
    """The first pass; None where the whole batch goes through the model at once.

    seed: makes the draws of one micro-batch, by its name.
    """
    if not separable(objective):
        return None
    cut = packs_of if run.packs["policy"] else by_length
    places = cut(lengths_of(batch), micro.rows, micro.tokens)
    if len(places) == 1:
        return None
    parts = [narrow(batch, rows) for rows in places]

    def represent(n: int) -> Seen:
        seed(f"/{n}")
        return objective.represent(run, parts[n])

    with torch.no_grad():
        found = [represent(n) for n in range(len(parts))]
    order = torch.tensor([row for rows in places for row in rows]).argsort()
    seen = {name: torch.cat([made[name] for made in found])[order].requires_grad_() for name in found[0]}
    return Gathered(seen, represent, places)
