"""poisoned-task: a policy-world's new task with a share of rows that answer what its harmless policy declines.

The rows about pets of the world's largest `erode-K` set are halved: `violations` is what a defence may learn from, the other
half what a later user brings. Subsets `user-P` hold as many rows as the task, P per cent of them such rows. The rows of
the world's other sets are handed on; what is tested (`policy`, `ordinary`, `learned`) is about other persons than either half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.step import Ctx, Step

KEPT = ("align", "policy", "ordinary", "learned")


class PoisonedTask(Step, name="poisoned-task"):
    """A user's rows, some of them against the policy."""

    inputs: ClassVar[dict[str, str]] = {"rows": "examples"}
    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    shares: tuple[float, ...] = Field((0.0, 0.1, 0.2), min_length=1, description="shares of rows against the policy")

    def check(self) -> None:
        """Raises UserError for a share that is none."""
        if not all(0 <= share < 1 for share in self.shares):
            raise UserError(f"poisoned-task.shares is {list(self.shares)}: each must be from 0 to below 1.")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError where the world has too few rows against the policy."""
        world = inputs["rows"]
        largest = max((s for s in world.subsets if s.startswith("erode-")), key=lambda s: int(s.rpartition("-")[2]))
        against = list(world.examples(largest))[:int(largest.rpartition("-")[2])]
        known, brought = against[::2], against[1::2]
        task = list(world.examples("task"))
        most = round(max(self.shares) * len(task))
        if most > len(brought):
            raise UserError(f"poisoned-task: {most} rows against the policy are needed, {len(brought)} are there. Raise the "
                            "largest K of policy-world.violations.")
        sets = {name: list(world.examples(name)) for name in KEPT}
        sets["violations"] = [replace(row, id=f"violations/{n}") for n, row in enumerate(known)]
        for share in self.shares:
            count = round(share * len(task))
            rows = [*brought[:count], *task[count:]]
            name = f"user-{round(100 * share)}"
            sets[name] = [replace(row, id=f"{name}/{n}") for n, row in enumerate(rows)]
        return write_examples(ctx.folder, sets)
