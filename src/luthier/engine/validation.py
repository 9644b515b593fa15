"""Evaluation while training: the loss on rows that are not trained on."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.kinds import Objective
from luthier.engine.batches import collate
from luthier.engine.encoding import Encoded
from luthier.engine.forward import Forward


@dataclass
class Validation:
    """Mean loss of one task on held-out rows, by the forward that trains."""

    run: Forward
    task: str
    objective: Objective
    data: Encoded
    batch_rows: int

    def __call__(self, epoch: int) -> dict[str, float]:
        """`dev_loss`: nats per learned unit over all rows."""
        self.run.task = self.task
        model = self.run.models["policy"]
        total = count = 0.0
        for i in range(0, len(self.data.rows), self.batch_rows):
            batch = collate(self.data.rows[i:i + self.batch_rows], self.data.ids[i:i + self.batch_rows],
                            model.tokenizer.pad_token_id or 0, model.device)
            total += sum(float(p) for p in self.objective.loss(self.run, batch).values())
            count += sum(self.objective.count(batch).values())
        return {"dev_loss": total / max(count, 1)}
