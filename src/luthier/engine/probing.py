"""What receipts ask of a trained model: its loss on the first rows of each task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from luthier.engine.batches import collate
from luthier.engine.forward import Forward

if TYPE_CHECKING:
    from luthier.engine.loop import Task
    from luthier.engine.models import Model

PROBE_ROWS = 4


def losses(model: Model, tasks: list[Task]) -> list[float]:
    """Mean loss of each probed row of each task, evaluation mode; of all of them together where rows see each other."""
    run = _asking(model, tasks)
    found = []
    with torch.no_grad():
        for task in tasks:
            probed = min(PROBE_ROWS, len(task.rows))
            together = "coupled" in task.objective.parts.values()
            for rows in [slice(0, probed)] if together else [slice(i, i + 1) for i in range(probed)]:
                total, count = _loss_of(run, task, rows)
                found.append(total / max(count, 1))
    return found


def packed_and_padded(model: Model, tasks: list[Task]) -> list[float]:
    """Summed loss of the probed rows in one pack, of each alone without packing, and how far arithmetic alone sets them apart.

    The third number sums over rows what a pack of one row differs from the row by: the same sums in another order, and no
    neighbour to see. Nothing is measured where rows aren't packed.
    """
    run = _asking(model, tasks)
    alone = [t for t in tasks if "coupled" not in t.objective.parts.values()]
    if not run.packs["policy"] or not alone:
        return []

    def each() -> list[float]:
        return [_loss_of(run, t, slice(i, i + 1))[0] for t in alone for i in range(min(PROBE_ROWS, len(t.rows)))]

    with torch.no_grad():
        packed, single = sum(_loss_of(run, t, slice(0, PROBE_ROWS))[0] for t in alone), each()
        run.packs = dict.fromkeys(run.packs, False)
        padded = each()
    return [packed, sum(padded), sum(abs(s - p) for s, p in zip(single, padded, strict=True))]


def _asking(model: Model, tasks: list[Task]) -> Forward:
    for module in (model.module, *model.heads.values()):
        module.eval()
    others = {role for t in tasks for role in t.objective.live_roles()}
    return Forward({role: model for role in ("policy", *others)}, others)


def _loss_of(run: Forward, task: Task, rows: slice) -> tuple[float, float]:
    """Summed loss and count of some rows."""
    model = run.models["policy"]
    run.task = task.name
    batch = collate(task.rows[rows], task.ids[rows], model.tokenizer.pad_token_id or 0, model.device)
    return (sum(float(p) for p in task.objective.loss(run, batch).values()), sum(task.objective.count(batch).values()))
