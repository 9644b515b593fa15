"""Whose turn it is: several tasks, of which each optimizer step takes a few that are drawn by their size.

A step accumulates `each` batches; each is of one task, drawn with a chance of rows^(1 / temperature), with replacement. So a
step sees several tasks (heterogeneous), and a large task more often than a small one. With `alike` all batches of a step are
of one task: what the paper of the next line shows to be worse. Everything is a pure function of (seed, step).

Source: Aghajanyan et al. 2021, "Muppet: massive multi-task representations with pre-finetuning", section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.rng import Rng

if TYPE_CHECKING:
    from luthier.engine.loop import Loop, Task


@dataclass(frozen=True)
class Turn:
    """One batch of a step: of task `task`, the task's `nth`. `share` of the step's loss is its own.

    `again` is how often the task has had a turn in the same step before.
    """

    task: int
    nth: int
    share: float = 1.0
    again: int = 0


class Turns:
    """Which tasks take their turn in each of `steps` steps; `rows` are those of each task by name."""

    def __init__(self, rows: Mapping[str, int], rng: Rng, steps: int, each: int, temperature: float = 1.0, alike: bool = False
                 ) -> None:
        self.names, self.rows = list(rows), list(rows.values())
        self.rng, self.steps, self.each, self.alike = rng, steps, each, alike
        weights = np.array(self.rows, dtype=np.float64) ** (1 / temperature)
        self.chances = weights / weights.sum()

    @cached_property
    def drawn(self) -> np.ndarray:
        """[steps, each] the number of the task of each turn."""
        # A draw a step: a training that is made longer begins as the shorter one did.
        found = [self.rng("turns", step).choice(len(self.rows), size=1 if self.alike else self.each, p=self.chances)
                 for step in range(self.steps)]
        return np.array(found, dtype=np.int64).reshape(self.steps, 1 if self.alike else self.each).repeat(
            self.each if self.alike else 1, axis=1)

    @cached_property
    def _had(self) -> np.ndarray:
        """[steps + 1, tasks] how many turns each task has had before each step."""
        counts = np.zeros((self.steps + 1, len(self.rows)), dtype=np.int64)
        for step, tasks in enumerate(self.drawn):
            counts[step + 1] = counts[step] + np.bincount(tasks, minlength=len(self.rows))
        return counts

    def at(self, step: int) -> list[Turn]:
        """The turns of one step, in order."""
        had, seen = self._had[step], [0] * len(self.rows)
        found = []
        for task in map(int, self.drawn[step]):
            found.append(Turn(task, int(had[task]) + seen[task], 1 / self.each, seen[task]))
            seen[task] += 1
        return found

    def report(self, steps: int) -> dict[str, dict[str, Any]]:
        """Rows, chance and turns of each task after so many steps."""
        return {n: {"rows": r, "share": round(float(c), 6), "turns": int(had)}
                for n, r, c, had in zip(self.names, self.rows, self.chances, self._had[steps], strict=True)}


def due(loop: Loop) -> list[tuple[Task, Turn]]:
    """The tasks whose turn it is in the step that a training is at: a batch of each where it has no `turns`."""
    step = loop.clock.step
    turns = [Turn(n, step) for n in range(len(loop.tasks))] if loop.turns is None else loop.turns.at(step)
    return [(loop.tasks[t.task], t) for t in turns]


def steps_of_epoch(rows: Sequence[int], batch: int, turns: Turns | None = None) -> int:
    """Optimizer steps of an epoch of tasks with so many rows: of the first task, or of all rows where tasks take turns."""
    return math.ceil(rows[0] / batch) if turns is None else math.ceil(sum(rows) / (batch * turns.each))
