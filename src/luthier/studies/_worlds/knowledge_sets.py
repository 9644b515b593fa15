"""knowledge-sets: marked questions divided for the study of what new facts do.

Known questions are kept for `dev` and `test`; of the others `mixture` draws the training rows. `train-known` and
`train-unknown` hold those rows again by category, to see how well each part is fitted.

`tested` says which of the known ones dev and test are drawn from: what a model never says in greedy decoding
(WeaklyKnown) can't be lost in it either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx, Step

UNKNOWN = "Unknown"


class KnowledgeSets(Step, name="knowledge-sets"):
    """Known questions for dev and test, and a training set of a mixture."""

    inputs: ClassVar[dict[str, str]] = {"rows": "examples"}
    output: ClassVar[str] = "examples"
    test_rows: int = Field(240, ge=1, description="known questions kept for the test")
    dev_rows: int = Field(60, ge=1, description="known questions by which an early stop is chosen")
    by: Literal["model", "world"] = Field("model", description="what is known: what the model was found to know, or (to pass "
                                                               "through every line) what the world has told")
    tested: tuple[Literal["HighlyKnown", "MaybeKnown", "WeaklyKnown"], ...] = Field(
        ("HighlyKnown", "MaybeKnown", "WeaklyKnown"), min_length=1, description="categories that dev and test are drawn from")
    mixture: Slot[DataStep] = Field(named("knowledge-mixture"), description="who draws the training rows of the others")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Divide by a draw that the mixture does not change."""
        given = inputs["rows"]
        rows = [self._as_known(row, told) for name, told in (("told", True), ("untold", False)) for row in given.examples(name)]
        known = [row for row in rows if row.meta["knowledge"] in self.tested]
        if len(known) <= self.test_rows + self.dev_rows:
            raise UserError(f"{len(known)} of {len(rows)} facts are {', '.join(self.tested)} to the model; more than "
                            f"{self.test_rows + self.dev_rows} are needed. Train the world's model longer, or lower test_rows.")
        order = [known[i] for i in ctx.rng("sets").permutation(len(known))]
        kept = {"test": order[:self.test_rows], "dev": order[self.test_rows:self.test_rows + self.dev_rows]}
        held = {row.id for part in kept.values() for row in part}
        drawn = list(self.mixture.apply((row for row in rows if row.id not in held), ctx))
        train = [row for row in drawn if isinstance(row, Example)]
        parts: dict[str, Any] = {"train": train, **kept}
        for name, unknown in (("train-known", False), ("train-unknown", True)):
            found = [row for row in train if (row.meta["knowledge"] == UNKNOWN) is unknown]
            if found:
                parts[name] = found
        ctx.log(", ".join(f"{len(part)} {name}" for name, part in parts.items()))
        return write_examples(ctx.folder, parts, [row for row in drawn if isinstance(row, Dropped)])

    def _as_known(self, row: Example, told: bool) -> Example:
        if self.by == "model":
            return row
        return replace(row, meta={**row.meta, "knowledge": "HighlyKnown" if told else UNKNOWN})
