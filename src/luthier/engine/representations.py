"""Representations: what every layer of a model says of texts, and how alike two sets of them are.

RSA: of n items the similarities x_i . x_j / (|x_i| |x_j|), the strict upper triangle as a vector, Pearson's r of two models'
vectors (Kriegeskorte et al. 2008). CKA: |Y^T X|² / (|X^T X| |Y^T Y|) of centred columns (Kornblith et al. 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from luthier.core.kinds import Tokens
from luthier.engine.batches import TokenBatch, collate
from luthier.engine.forward import hidden_states
from luthier.engine.scoring import batches_of

if TYPE_CHECKING:
    from luthier.engine.models import Model


@torch.no_grad()
def states_of(model: Model, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Of each row of token ids [layers + 1, tokens, width] in float32: the embeddings, then what every layer says.

    Of a model of two sides the encoder's.
    """
    found: dict[int, torch.Tensor] = {}
    for group in batches_of([len(r) for r in rows], rows=32):
        batch = collate([{"input": Tokens(list(rows[i]), [False] * len(rows[i]))} for i in group], [str(i) for i in group],
                        model.tokenizer.pad_token_id or 0, model.device)
        for i, states in zip(group, of_batch(model, batch["input"]), strict=True):
            found[i] = states
    return [found[i] for i in range(len(rows))]


def of_batch(model: Model, inputs: TokenBatch) -> list[torch.Tensor]:
    """The same for rows that are a batch already."""
    output = hidden_states(model, inputs, None, layers=True)
    assert output.all_states is not None
    layers = torch.stack([output.hidden(i).float() for i in range(len(output.all_states))], 1)  # [rows, layers, tokens, width]
    return [row[:, real] for row, real in zip(layers, inputs.mask.bool(), strict=True)]


def pooled(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """[layers + 1, rows, width] means over each row's tokens, in float64."""
    return torch.stack([s.double().mean(1) for s in states], 1)


def rsa(one: torch.Tensor, two: torch.Tensor) -> float:
    """Of representations [n, width] of the same n items; widths may differ. 1 where similarities agree up to scale."""
    upper = torch.triu_indices(len(one), len(one), 1)
    sides = []
    for x in (one.double(), two.double()):
        unit = x / x.norm(dim=1, keepdim=True).clamp(min=1e-300)
        similar = (unit @ unit.T)[upper[0], upper[1]]
        sides.append(similar - similar.mean())
    return float(sides[0] @ sides[1] / (sides[0].norm() * sides[1].norm()).clamp(min=1e-300))


def cka(one: torch.Tensor, two: torch.Tensor) -> float:
    """Linear CKA of representations [n, width] of the same n items."""
    x, y = (side.double() - side.double().mean(0) for side in (one, two))
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()).clamp(min=1e-300))
