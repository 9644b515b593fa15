"""noisy-facts: questions about facts that a model knows, some with the answer of another question.

Subsets: `train` (a share `wrong` of the rows has another value of the relation; `meta["planted"]` says which), `half` (a drawn
half of them), `clean` (the same questions with their own answers) and `test` (facts of other persons, told `least_mentions`
times or more).
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
from luthier.studies._worlds.facts import RELATIONS


class NoisyFacts(Step, name="noisy-facts"):
    """Known facts with planted wrong answers."""

    inputs: ClassVar[dict[str, str]] = {"facts": "examples"}
    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    rows: int = Field(120, ge=2, description="rows to learn from")
    wrong: float = Field(0.3, gt=0, lt=1, description="share of them with a wrong answer")
    tested: int = Field(60, ge=1, description="held-out facts")
    least_mentions: int = Field(4, ge=1, description="how often a fact was told that is used")
    seed: int = Field(0, ge=0, description="which rows; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError where too few facts are known well."""
        draw = Rng(self.seed).within("noisy-facts")
        told = list(inputs["facts"].examples("told"))
        known = [e for e in told if e.meta["mentions"] >= self.least_mentions]
        known = [known[i] for i in draw("facts").permutation(len(known))]
        test = known[:self.tested]
        away = {e.source for e in test}
        rest = [e for e in known if e.source not in away][:self.rows]
        if len(test) < self.tested or len(rest) < self.rows:
            raise UserError(f"noisy-facts: {len(known)} facts were told {self.least_mentions} times or more; "
                            f"{self.tested} for the test and {self.rows} about other persons are needed. Raise persons.")
        values = {r: sorted({e.answer for e in told if e.meta["relation"] == r}) for r in RELATIONS}
        planted = set(draw("planted").permutation(len(rest))[:round(self.wrong * len(rest))].tolist())
        train = [self._row(e, n in planted, values, draw) for n, e in enumerate(rest)]
        half = sorted(draw("half").permutation(len(train))[:len(train) // 2].tolist())
        return write_examples(ctx.folder, {
            "train": train, "half": [replace(train[n], id=f"half/{train[n].id}") for n in half],
            "clean": [replace(e, id=f"clean/{e.id}") for e in rest], "test": [replace(e, id=f"test/{e.id}") for e in test]})

    def _row(self, fact: Example, wrong: bool, values: Mapping[str, list[str]], draw: Rng) -> Example:
        others = [v for v in values[str(fact.meta["relation"])] if v != fact.answer]
        said = others[int(draw("other", fact.id).integers(len(others)))] if wrong else fact.answer
        return question(f"train/{fact.id}", fact.part("question"), said, source=fact.source, cluster=fact.id,
                        references=(said,), meta={**fact.meta, "planted": wrong})
