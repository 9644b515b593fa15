"""Probes of frozen representations: linear classifiers, mixtures of layers, and linear maps that bring pairs together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

RIDGE, SCALE, MARGIN = 1e-2, 20.0, 0.3


def linear(x: torch.Tensor, y: torch.Tensor, classes: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A reader of classes: ridge regression from standardised x [items, width] to one column a class, the largest wins."""
    import torch

    x = x.double()
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp(min=1e-9)

    def features(given: torch.Tensor) -> torch.Tensor:
        return torch.cat([(given.double() - mean) / deviation, torch.ones(len(given), 1, dtype=torch.float64)], 1)

    own, wanted = features(x), torch.nn.functional.one_hot(y, classes).double()
    gram = own.T @ own + RIDGE * len(own) * torch.eye(own.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(gram, own.T @ wanted)
    return lambda given: (features(given) @ solved).argmax(1)


def mixture(x: torch.Tensor, y: torch.Tensor, classes: int, steps: int) -> torch.Tensor:
    """softmax(w) [layers] of a linear classifier that is trained with it, from x [layers, items, width]."""
    import torch

    x = torch.nn.functional.layer_norm(x, x.shape[-1:])
    raw = torch.zeros(len(x), requires_grad=True)
    head = torch.nn.Linear(x.shape[-1], classes)
    optimizer = torch.optim.Adam([raw, *head.parameters()], lr=0.05)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(head(torch.tensordot(raw.softmax(0), x, 1)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return raw.detach().softmax(0)


def _trained(width: int, loss: Callable[[torch.Tensor], torch.Tensor], steps: int) -> torch.Tensor:
    """A map [width, width] that begins as the identity and lowers a loss."""
    import torch

    mapped = torch.eye(width, requires_grad=True)
    optimizer = torch.optim.Adam([mapped], lr=1e-3)
    for _ in range(steps):
        value = loss(mapped)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return mapped.detach()


def own_tree(one: torch.Tensor, two: torch.Tensor, train: list[int], test: list[int], steps: int) -> list[float]:
    """1 / rank of each test program's own tree among all of the test."""
    import torch
    from torch.nn.functional import cross_entropy, normalize

    def cosines(mapped: torch.Tensor, rows: list[int]) -> torch.Tensor:
        return normalize(one[rows] @ mapped, dim=1) @ normalize(two[rows] @ mapped, dim=1).T

    mapped = _trained(one.shape[1], lambda m: cross_entropy(SCALE * cosines(m, train), torch.arange(len(train))), steps)
    found = cosines(mapped, test)
    # Ties count against: what can't be told apart was not found.
    return [1 / float((row >= row[i]).sum()) for i, row in enumerate(found)]


def same_problem(x: torch.Tensor, problems: list[str], train: list[int], test: list[int], steps: int) -> list[float]:
    """MAP@R of each test program that has others of its problem: the mean precision at its hits among the R nearest."""
    import torch
    from torch.nn.functional import normalize

    def cosines(mapped: torch.Tensor, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        unit = normalize(x[rows] @ mapped, dim=1)
        own = [problems[i] for i in rows]
        return unit @ unit.T, torch.tensor([[a == b for b in own] for a in own])

    def loss(mapped: torch.Tensor) -> torch.Tensor:
        found, same = cosines(mapped, train)
        other = same & ~torch.eye(len(train), dtype=torch.bool)
        triplets = (MARGIN - found[:, :, None] + found[:, None, :]).clamp(min=0)
        valid = other[:, :, None] & ~same[:, None, :]
        return triplets[valid].mean() if bool(valid.any()) else found.sum() * 0

    found, same = cosines(_trained(x.shape[1], loss, steps), test)
    scores = []
    for i, row in enumerate(found):
        relevant = int(same[i].sum()) - 1
        if relevant:
            row[i] = -2
            hits = same[i][row.argsort(descending=True)[:relevant]].double()
            scores.append(float((hits * hits.cumsum(0) / torch.arange(1, relevant + 1)).sum() / relevant))
    return scores
