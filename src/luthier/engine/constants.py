"""Numbers of rows that no training changes, computed once before the first step.

What a frozen reference says to a row is the same in every epoch. It is computed in batches of similar length, kept in
the step's journal under the digest of objective and rows, and put among the rows' features: no second forward
while training, and a resumed training reads the very same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.files import Journal
from luthier.core.identity import digest
from luthier.core.kinds import Features, Objective, Tokens
from luthier.core.step import Progress, silent
from luthier.engine.batches import array, collate
from luthier.engine.scoring import batches_of

if TYPE_CHECKING:
    from luthier.engine.forward import Forward

BATCH_ROWS = 8


def with_constants(rows: Sequence[Features], objective: Objective, run: Callable[[], Forward], journal: Journal,
                   progress: Progress = silent) -> list[Features]:
    """The rows with the objective's constants among their features; `run()` gives the models, where they are needed."""
    if set(objective.live_roles()) == set(objective.roles):
        return list(rows)
    found: list[Features] = list(rows)
    forward: list[Forward] = []
    groups = batches_of([_length(row) for row in rows], rows=BATCH_ROWS)
    for n, group in enumerate(groups):
        def make(group: Sequence[int] = group) -> dict[str, list[float]]:
            if not forward:
                forward.append(run())
            return _constants([rows[i] for i in group], objective, forward[0])

        key = digest({"objective": objective.identity_values(), "rows": [_plain(rows[i]) for i in group]})
        known = f"constants/{key}" in journal
        values = journal.do(f"constants/{key}", make)
        for place, i in enumerate(group):
            found[i] = {**rows[i], **{name: numbers[place] for name, numbers in values.items()}}
        if not known:
            progress(sum(map(len, groups[:n + 1])), len(rows), "rows seen by the reference")
    return found


@torch.no_grad()
def _constants(rows: Sequence[Features], objective: Objective, run: Forward) -> dict[str, list[float]]:
    model = next(iter(run.models.values()))
    batch = collate(rows, [str(i) for i in range(len(rows))], model.tokenizer.pad_token_id or 0, model.device)
    return {name: numbers.float().tolist() for name, numbers in objective.constants(run, batch).items()}


def _length(row: Features) -> int:
    return max((len(p.ids) + len(p.decoder_ids or ()) for p in row.values() if isinstance(p, Tokens)), default=1)


def told(value: Any) -> Any:
    """An array for a digest: what is read from files by their hashes, others by their numbers."""
    return value.key if hasattr(value, "key") else array(value).tolist()


def _plain(row: Features) -> dict[str, Any]:
    """A row as JSON, for its digest; arrays of other modalities by their numbers."""
    return {name: [p.ids, p.targets, p.decoder_ids, {n: told(t) for n, t in {**p.tensors, **p.pieces}.items()}]
            if isinstance(p, Tokens) else p for name, p in row.items()}
