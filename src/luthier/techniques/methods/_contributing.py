"""Contributing tokens: which token types a task needs, by the labels of its rows or by the gradient of its loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.kinds import Tokens
from luthier.core.step import FitCtx

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


def texts_of(ctx: FitCtx) -> list[tuple[list[int], Any]]:
    """Ids and label of every row to be trained on."""
    assert ctx.rows is not None
    return [(p.ids, row.get("label")) for row in ctx.rows.task.rows for p in row.values() if isinstance(p, Tokens)]


def by_labels(texts: Sequence[tuple[list[int], Any]], vocabulary: int, kind: str) -> dict[int, float]:
    """Score of each token type for telling the labels apart, from labelled texts; `kind` is log-odds or chi-square."""
    import numpy as np

    classes = sorted({label for _, label in texts})
    counts = {c: Counter[int]() for c in classes}
    documents: dict[Any, Counter[int]] = {c: Counter() for c in classes}
    rows = Counter(label for _, label in texts)
    for ids, label in texts:
        counts[label].update(ids)
        documents[label].update(set(ids))
    seen = sum(documents.values(), Counter[int]())
    total = {c: sum(counts[c].values()) for c in classes}
    scores = {}
    for token, held in seen.items():
        if kind == "log-odds":
            all_of, every = sum(counts[c][token] for c in classes), sum(total.values())
            odds = [np.log((counts[c][token] + 1) / (total[c] + vocabulary))
                    - np.log((all_of - counts[c][token] + 1) / (every - total[c] + vocabulary)) for c in classes]
            scores[token] = float(max(odds) * np.sqrt(held))
        else:
            table = np.array([[documents[c][token], rows[c] - documents[c][token]] for c in classes], dtype=float)
            wanted = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
            scores[token] = float(((table - wanted) ** 2 / np.where(wanted > 0, wanted, 1)).sum())
    return scores


def by_gradient(model: Model, ctx: FitCtx) -> dict[int, float]:
    """Mean over its places of |gradient of the loss . embedding| for each token type, before training."""
    assert ctx.rows is not None and ctx.closure is not None
    sums: dict[int, float] = {}
    places: Counter[int] = Counter()

    def listen(module: Any, given: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        ids = given[0].flatten().tolist()
        out = out.detach().requires_grad_()

        def heard(gradient: torch.Tensor) -> None:
            for token, worth in zip(ids, (gradient * out).sum(-1).abs().flatten().tolist(), strict=True):
                sums[token] = sums.get(token, 0.0) + worth
                places[token] += 1

        out.register_hook(heard)
        return out

    handle = model.module.get_input_embeddings().register_forward_hook(listen)
    try:
        for start in range(0, len(ctx.rows), ctx.rows.per_batch):
            batch = ctx.rows.batch(range(start, min(len(ctx.rows), start + ctx.rows.per_batch)))
            ctx.closure([batch], into=[])
    finally:
        handle.remove()
    return {token: sums[token] / places[token] for token in places}
