"""labelled-help: sentences of Python's own help, each with the topic that it stands in, as rows that a head can learn.

The topics are those with most sentences, as often as they come; no sentence is in two subsets. Versions of Python differ in a
few sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.task_bank import helped


class LabelledHelp(Step, name="labelled-help"):
    """Sentences with their topic."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    topics: int = Field(5, ge=2, description="how many topics there are to be told apart")
    train: int = Field(300, ge=2, description="rows to learn from")
    tests: int = Field(300, ge=2, description="rows of `test`; half as many in `dev`")
    seed: int = Field(0, ge=0, description="which rows; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError for fewer sentences than asked for, and an interpreter without its help."""
        every = [(name, said) for name, found in islice(helped().items(), self.topics) for said in found]
        counts = {"train": self.train, "dev": max(1, self.tests // 2), "test": self.tests}
        if len(every) < sum(counts.values()):
            raise UserError(f"labelled-help: {self.topics} topics have {len(every)} sentences, and {sum(counts.values())} are "
                            "wanted. Ask for more topics or for fewer rows.")
        order = iter(Rng(self.seed).within("labelled-help")("rows").permutation(len(every)))
        return write_examples(ctx.folder, {
            subset: [_row(f"{subset}/{n}", *every[i]) for n, i in enumerate(islice(order, count))]
            for subset, count in counts.items()}, labels=sorted({name for name, _ in every}))


def _row(name: str, topic: str, said: str) -> Example:
    return Example(name, (Turn("user", (Part(said, name="text"),)),), task="classify", cluster=name, label=topic)
