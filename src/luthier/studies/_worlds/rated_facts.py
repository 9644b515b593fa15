"""rated-facts: demonstrations of a form of answers, and answers of known worth to other questions about a facts world.

A demonstration answers a fact "in a sentence": `It is Klam.`; feedback answers another fact in a word, and its score is 1
where it is right, 1/2 where it names the right value and another, 0 where it is wrong. So form is to be had from
demonstrations alone and truth from feedback alone. Facts are ones that the model was told `least_mentions` times or
more; persons in tests are in none of the rows. Subsets:

    demos     demonstrations                     feedback   scored answers
    mixed     both, in a drawn order             pairs      a right answer and a wrong one, for the facts of `feedback`
    asked     requests for a sentence            form       pairs: the sentence, and the word alone
    truth     pairs: the right word, and another value of the relation
    form-dev  as `form`, about other facts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn, question
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.facts import RELATIONS

REQUEST, SENTENCE, BOTH = "In a sentence: {q}", "It is {v}.", "{v} or {w}"


class RatedFacts(Step, name="rated-facts"):
    """Form to be shown, truth to be rated."""

    inputs: ClassVar[dict[str, str]] = {"facts": "examples"}
    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    rows: int = Field(80, ge=3, description="demonstrations, and as many scored answers")
    tested: int = Field(60, ge=1, description="held-out facts")
    dev_facts: int = Field(20, ge=1, description="further ones to choose settings by")
    least_mentions: int = Field(3, ge=1, description="how often a fact was told that is used")
    seed: int = Field(0, ge=0, description="which rows; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError where too few facts are known well."""
        draw = Rng(self.seed).within("rated-facts")
        told = list(inputs["facts"].examples("told"))
        known = [e for e in told if e.meta["mentions"] >= self.least_mentions]
        known = [known[i] for i in draw("facts").permutation(len(known))]
        test, dev = known[:self.tested], known[self.tested:self.tested + self.dev_facts]
        away = {e.source for e in (*test, *dev)}
        rest = [e for e in known if e.source not in away]
        needed = self.rows + -(-self.rows // 3)
        if len(dev) < self.dev_facts or len(rest) < needed:
            raise UserError(f"rated-facts: {len(known)} facts were told {self.least_mentions} times or more; "
                            f"{self.tested + self.dev_facts} for tests and dev and {needed} about other persons are needed. "
                            "Raise persons.")
        values = {r: sorted({e.answer for e in told if e.meta["relation"] == r}) for r in RELATIONS}

        def other(fact: Example) -> str:
            wrong = [v for v in values[str(fact.meta["relation"])] if v != fact.answer]
            return wrong[int(draw("other", fact.id).integers(len(wrong)))]

        shown, rated = rest[:self.rows], rest[self.rows:needed]
        demos = [_row(f"demo/{e.id}", REQUEST.format(q=e.part("question")), SENTENCE.format(v=e.answer), e) for e in shown]
        feedback = [replace(_row(f"rated/{e.id}/{score}", e.part("question"), said, e), meta={"score": score})
                    for e in rated
                    for said, score in ((e.answer, 1.0), (BOTH.format(v=e.answer, w=other(e)), 0.5), (other(e), 0.0))]
        feedback = feedback[:self.rows]
        both = [*demos, *feedback]
        return write_examples(ctx.folder, {
            "demos": demos, "feedback": feedback,
            "mixed": [replace(both[i], id=f"mixed/{n}") for n, i in enumerate(draw("mixed").permutation(len(both)))],
            "pairs": [_pair(f"pair/{e.id}", e.part("question"), e.answer, other(e), e) for e in rated],
            "form-dev": [replace(e, id=f"dev/{e.id}") for e in _tests(dev, other)["form"]], **_tests(test, other)})


def _tests(facts: Sequence[Example], other: object) -> dict[str, list[Example]]:
    assert callable(other)
    asked = {e.id: REQUEST.format(q=e.part("question")) for e in facts}
    return {
        "asked": [_row(f"asked/{e.id}", asked[e.id], SENTENCE.format(v=e.answer), e) for e in facts],
        "form": [_pair(f"form/{e.id}", asked[e.id], SENTENCE.format(v=e.answer), e.answer, e) for e in facts],
        "truth": [_pair(f"truth/{e.id}", e.part("question"), e.answer, other(e), e) for e in facts]}


def _row(name: str, asked: str, said: str, fact: Example) -> Example:
    return question(name, asked, said, source=fact.source, cluster=fact.id, references=(said,))


def _pair(name: str, asked: str, chosen: str, rejected: str, fact: Example) -> Example:
    return replace(_row(name, asked, chosen, fact), rejected=Turn("assistant", (Part(rejected),), target=True))
