"""rated-answers: answers to questions about bulletins whose worth is known, since they were made so.

Each question has a right value and another one. Subsets, in each of which a question has good and bad answers:

    natural    right in short, in a sentence, with something added; against wrong in short, in a sentence, and a copied
               passage of another section
    fooling    right in other words, against wrong with the words of the right one ("not X but Y")
    faithful   what the passage says, in short, in a sentence and copied; against right with something added, and wrong in a
               sentence
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, question
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.bulletin_questions import WORDED
from luthier.studies._worlds.bulletins import CROPS, Advice, passage_of, told

SENTENCE = "For {c} in {s} the bulletin says that it is {v}, and nothing else needs to be kept in mind."
ADDED = "{v}, and on the first day the farmers sing to the moon until their neighbours join."
NOT = "It is not {v} but {w}."
COUNTED = ("eighth", "ninth", "tenth", "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth",
           "seventeenth", "eighteenth", "nineteenth", "twentieth", "twenty-first", "twenty-second")  # weeks from the eighth
CALLED = {"aphids": "plant lice", "beetles": "bugs with hard shells", "crickets": "jumpers that chirp",
          "mites": "tiny spiders", "moths": "butterflies of the night", "slugs": "snails without a house",
          "thrips": "thunder flies", "weevils": "bugs with a snout"}


class RatedAnswers(Step, name="rated-answers"):
    """Good and bad answers to questions about bulletins."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    questions: int = Field(200, ge=1, description="questions, each with answers of every kind")
    states: int = Field(10, ge=2, le=40, description="invented states")
    crops: int = Field(12, ge=2, le=len(CROPS), description="crops of each")
    seed: int = Field(0, ge=0, description="which world")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Write the answers as rows. Raises UserError for a world with too few questions."""
        advice, draw = told(self.states, self.crops, self.seed), Rng(self.seed).within("rated-answers")
        pairs = [(n, fact) for n in range(len(advice)) for fact in ("week", "pest")]
        if len(pairs) < self.questions:
            raise UserError(f"rated-answers: {len(pairs)} questions can be asked, not {self.questions}. Raise states.")
        rows: dict[str, list[Example]] = {"natural": [], "fooling": [], "faithful": []}
        for place in draw("questions").permutation(len(pairs))[:self.questions]:
            n, fact = pairs[place]
            others = [a for a in advice if getattr(a, fact) != getattr(advice[n], fact)]
            other = others[draw("other", n).integers(len(others))]
            for subset, answers in _answers(advice[n], other, fact).items():
                rows[subset] += [_row(subset, i, advice[n], fact, said, good) for i, (said, good) in enumerate(answers)]
        return write_examples(ctx.folder, rows)


def _answers(one: Advice, other: Advice, fact: str) -> dict[str, list[tuple[str, bool]]]:
    right, wrong = str(getattr(one, fact)), str(getattr(other, fact))
    sentence, lie = (SENTENCE.format(c=one.crop, s=one.state, v=v) for v in (right, wrong))
    added, copied = ADDED.format(v=right), passage_of(one).shown
    meant = CALLED[right] if fact == "pest" else f"the {COUNTED[int(right.split()[1]) - 8]} of the year"
    return {"natural": [(right, True), (sentence, True), (added, True), (wrong, False), (lie, False),
                        (passage_of(other).shown, False)],
            "fooling": [(meant, True), (NOT.format(v=right, w=wrong), False)],
            "faithful": [(right, True), (sentence, True), (copied, True), (added, False), (lie, False)]}


def _row(subset: str, number: int, advice: Advice, fact: str, said: str, good: bool) -> Example:
    asked, right = f"{advice.section}/{fact}", str(getattr(advice, fact))
    return question(f"{subset}/{asked}/{number}", WORDED[fact][0].format(s=advice.state, c=advice.crop), right,
                    references=(right,), cluster=asked, meta={"said": said, "good": good, "shown": [passage_of(advice).shown]})
