"""Rounds of answers: training on what the policy itself says, for objectives that are `on_policy`.

A round takes `rollouts` rows of the data, lets the objective make its experience of them (answers, rewards, advantages; as
many answers to each row), and replays that `passes` times in optimizer steps of `batch_rows` rows, in another order each
time. When the objective calls a round spent, the next one begins. A round is part of the checkpoint: a resumed training
replays the very rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.kinds import Features, Hook, Tokens
from luthier.core.rng import Rng
from luthier.engine import distributed
from luthier.engine.batches import Batch, collate

if TYPE_CHECKING:
    from luthier.core.step import FitCtx
    from luthier.engine.forward import Forward
    from luthier.engine.loop import Loop, Task
    from luthier.engine.rendering import Render


@dataclass
class Round:
    """What an objective is handed: the models, the drawn rows with their examples, and numbers kept from round to round.

    `rng` is this round's own.
    """

    run: Forward
    rows: Sequence[Features]
    examples: Sequence[Example]
    render: Render
    ctx: FitCtx
    rng: Rng
    memory: dict[str, float] = field(default_factory=dict)


class Rollouts(Hook):
    """Puts the rows of rounds in place of a task's batches."""

    def __init__(self, loop: Loop, task: Task, examples: Mapping[str, Example], render: Render) -> None:
        self.loop, self.task, self.examples, self.render = loop, task, examples, render
        self.objective: Any = task.objective
        self.known = frozenset(task.ids)
        self.rng = loop.rng.within(f"rollouts/{task.name}")
        self.memory: dict[str, float] = {}
        self.number, self.began, self.rows, self.ids = -1, 0, [], []  # type: ignore[var-annotated]
        self.made: tuple[int, Batch] | None = None  # of a step, so that one that begins again has the same batch

    def on_batch(self, batch: Batch) -> list[Batch]:
        """The rows of the current round that belong to this step."""
        if not self.known.issuperset(batch["ids"]):
            return [batch]  # of another task
        step = self.loop.clock.step
        if self.made is None or self.made[0] != step:
            self.made = (step, self._batch(step))
        return [self.made[1]]

    def _batch(self, step: int) -> Batch:
        size = self.loop.plan.batch_rows
        passed, place = divmod(step - self.began, max(1, math.ceil(len(self.rows) / size)))
        if not self.rows or passed >= self.objective.passes or (place == 0 and passed and self._spent(step, passed)):
            self._begin(step)
            passed = place = 0
        order = self.rng(f"order/{self.number}", passed).permutation(len(self.rows))[place * size:(place + 1) * size]
        return collate([self.rows[i] for i in order], [self.ids[i] for i in order], self.loop.pad, self.loop.model.device)

    def _spent(self, step: int, passed: int) -> bool:
        why = self.objective.spent(self._round(range(0)), self.rows)
        if why:
            self.loop.ctx.log(f"step {step}: round {self.number + 1} ends after {passed} of {self.objective.passes} passes: "
                              f"{why}")
        return bool(why)

    def _begin(self, step: int) -> None:
        from luthier.engine.loop import rows_at

        self.number, self.began = self.number + 1, step
        places = rows_at(self.rng, self.number, len(self.task.rows), self.objective.rollouts)
        self.ids = [f"{self.task.ids[i]}/{self.number}" for i in places]
        self.loop.run.task = self.task.name
        self.rows = self.objective.experience(self._round(list(places)))
        each, rest = divmod(len(self.rows), len(self.ids))
        if rest or not each:
            raise ValueError(f"{self.objective.info.name} made {len(self.rows)} rows of {len(self.ids)}")
        if each > 1:
            self.ids = [f"{name}/{n}" for name in self.ids for n in range(each)]
        # Answers are paid for: they are written and read once more to be weighed.
        self.loop.clock.tokens += 2 * sum(len(p.ids) + len(p.decoder_ids or ()) for row in self.rows
                                          for p in row.values() if isinstance(p, Tokens))

    def _round(self, places: Sequence[int]) -> Round:
        rows = [self.task.rows[i] for i in places]
        examples = [self.examples[self.task.ids[i]] for i in places]
        return Round(self.loop.run, rows, examples, self.render, self.loop.ctx, self.rng.within(f"round/{self.number}"),
                     self.memory)

    def state_dict(self) -> dict[str, Any]:
        """The round, its rows and the objective's numbers."""
        rows = [{n: asdict(p) if isinstance(p, Tokens) else {"numbers": list(p)} if isinstance(p, tuple) else p
                 for n, p in row.items()} for row in self.rows]
        return {"memory": dict(self.memory), "number": self.number, "began": self.began, "rows": rows, "ids": list(self.ids)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.memory.clear()
        self.memory.update(state["memory"])
        self.number, self.began, self.ids, self.made = state["number"], state["began"], list(state["ids"]), None
        self.rows = [{n: p if not isinstance(p, dict) else tuple(p["numbers"]) if "numbers" in p else Tokens(**p)
                      for n, p in row.items()} for row in state["rows"]]


def hooks(loop: Loop, examples: Sequence[Sequence[Example]], render: Render) -> list[Hook]:
    """A hook for each task whose objective learns on the policy; `examples` are those of each task.

    Raises:
        UserError: several processes train together, or an example became several rows.
    """
    found: list[Hook] = []
    for task, given in zip(loop.tasks, examples, strict=True):
        if not task.objective.on_policy:
            continue
        if distributed.ranks() > 1:
            raise UserError(f"Objective '{task.objective.info.name}' writes answers while it trains, and does so in one "
                            "process. Start it without torchrun.")
        known = {e.id: e for e in given}
        divided = next((i for i in task.ids if i not in known), None)
        if divided is not None:
            raise UserError(f"Objective '{task.objective.info.name}': row {divided} is a piece of an example, and an answer is "
                            "to a whole one. Use over_long: drop, and one answer an example.")
        found.append(Rollouts(loop, task, known, render))
    return found
