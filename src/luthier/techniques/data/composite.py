"""composite: rows of several tasks as one, a question a line and an answer a line, to be done in order.

Each composite takes one row of `n` different tasks, drawn, and keeps in `meta["segments"]` which text belongs to which
task, as [task, question] in order and then [task, answer] in order. Rows without a task, or with a question or an
answer of several lines, are dropped. When it helps: to test whether a model, or the gates of one, can turn from one
task to the next in a single answer. Source: Xu et al. 2024, arXiv 2405.13053, composite-n (seed 109).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, question
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx


class Composite(DataStep, name="composite", seeds=[109]):
    """Rows of several tasks, asked at once."""

    gives: ClassVar[Literal["same", "more", "other"]] = "other"
    n: int = Field(3, ge=2, description="tasks in a composite")
    rows: int = Field(100, ge=1, description="composites that are made")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        """Raises UserError for rows of fewer tasks than a composite has."""
        tasks: dict[str, list[tuple[str, str]]] = {}
        for row in rows:
            task, asked, answer = str(row.meta.get("task", "")), row.part("question").strip(), row.answer.strip()
            if not task or not asked or not answer:
                yield Dropped(row.id, "no task" if not task else "no question and answer", "a composite is made of both")
            elif "\n" in asked or "\n" in answer:
                yield Dropped(row.id, "several lines", "a composite has a line for each question and each answer")
            else:
                tasks.setdefault(task, []).append((asked, answer))
        if len(tasks) < self.n:
            there = ", ".join(sorted(tasks))
            raise UserError(f"composite: n = {self.n}, and the rows are of {len(tasks)} tasks ({there}). Each row needs a key "
                            "'task'; lower n or give rows of more tasks.")
        names = sorted(tasks)
        for number in range(self.rows):
            rng = ctx.rng("composite", number)
            chosen = [names[i] for i in rng.permutation(len(names))[:self.n]]
            drawn = [tasks[name][int(rng.integers(len(tasks[name])))] for name in chosen]
            segments = [[name, pair[side]] for side in (0, 1) for name, pair in zip(chosen, drawn, strict=True)]
            yield question(f"composite/{number}", "\n".join(q for q, _ in drawn), "\n".join(a for _, a in drawn),
                           cluster=f"composite/{number}", meta={"segments": segments})
