"""styled-facts: questions about the told facts of a facts world, to be answered in a manner.

Answers are "VALUE, it is." in the manner that is learned, "VALUE: VALUE." in another one. Facts to learn the manner
from and facts to be asked are different; both were told. Subsets: `train` and `other` (the same questions in the two
manners), `facts` and `styled` (the same questions to be asked: the value as reference, and the whole answer).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, question
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step

MANNER, OTHER = "{v}, it is.", "{v}: {v}."


class StyledFacts(Step, name="styled-facts", version=2):
    """Told facts as questions with answers in a manner."""

    inputs: ClassVar[dict[str, str]] = {"facts": "examples"}
    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    train_rows: int = Field(60, ge=1, description="questions to learn the manner from")
    test_rows: int = Field(150, ge=1, description="questions that are asked in the end")
    seed: int = Field(0, ge=0, description="which questions; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Divide the told facts. Raises UserError where too few were told."""
        told = list(inputs["facts"].examples("told"))
        if len(told) < self.train_rows + self.test_rows:
            raise UserError(f"styled-facts: {len(told)} facts were told, too few for {self.train_rows} rows to learn from and "
                            f"{self.test_rows} to ask. Raise persons.")
        order = Rng(self.seed).within("styled-facts")("order").permutation(len(told))
        train = [told[i] for i in order[:self.train_rows]]
        test = [told[i] for i in order[self.train_rows:self.train_rows + self.test_rows]]
        return write_examples(ctx.folder, {
            "train": [_answered(e, MANNER, "train") for e in train], "other": [_answered(e, OTHER, "other") for e in train],
            "facts": [replace(e, id=f"facts/{e.id}") for e in test], "styled": [_answered(e, MANNER, "styled") for e in test]})


def _answered(example: Example, manner: str, subset: str) -> Example:
    text = manner.format(v=example.answer)
    return question(f"{subset}/{example.id}", example.part("question"), text, cluster=example.cluster, source=example.source,
                    references=(text,))
