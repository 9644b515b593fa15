"""candidate-questions: questions about bulletins that lead to the intended answer, and some that lead elsewhere.

    read       questions with passage and answer, for a reader, in both wordings; of sections that no test asks about
    rate       answers with their rating by construction, for a scorer: the reference 5, within a sentence 4, another value 1
    fact       the question in other words; against questions about another fact of the passage, in the reference's words and
               in other words
    section    the question in other words; against the reference with another crop, and a question about another state

In the last two a cluster is a passage and an intended answer. As `question` a row is a candidate beside passage and intended
answer (for a metric that needs no reference); as `reference` the candidate stands in `meta["said"]`, and the reference question
is the right answer (for a metric of overlap).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, question
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.bulletin_questions import WORDED
from luthier.studies._worlds.bulletins import CROPS, Advice, passage_of, told

SENTENCE = "The bulletin says that it is {v}."


class CandidateQuestions(Step, name="candidate-questions"):
    """Good and corrupted questions, and rows to train a reader and a scorer with."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    form: Literal["question", "reference"] = Field("question", description="what a metric is shown: the candidate beside its "
                                                                           "passage, or beside the reference question")
    states: int = Field(10, ge=2, le=40, description="invented states")
    crops: int = Field(12, ge=2, le=len(CROPS), description="crops of each")
    tested: int = Field(60, ge=1, description="passages that are asked about in tests")
    seed: int = Field(0, ge=0, description="which world")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Write the subsets. Raises UserError for a world that is too small."""
        advice, draw = told(self.states, self.crops, self.seed), Rng(self.seed).within("candidate-questions")
        if len(advice) <= self.tested:
            raise UserError(f"candidate-questions: {len(advice)} sections are too few for {self.tested} tested ones and others "
                            "to learn from. Raise states.")
        order = [advice[i] for i in draw("sections").permutation(len(advice))]
        tested, rest = order[:self.tested], order[self.tested:]
        read = [_asked(f"read/{a.section}/{fact}/{n}", _worded(a, fact, n), a, fact) for a in rest for fact in WORDED
                for n in (0, 1)]
        rate = [row for i, a in enumerate(rest) for fact in WORDED for row in _rated(a, rest[i - 1], fact)]
        rows: dict[str, list[Example]] = {"read": read, "rate": rate, "fact": [], "section": []}
        for i, one in enumerate(tested):
            facts = list(WORDED)
            fact, other = facts[i % len(facts)], facts[(i + 1) % len(facts)]
            away = next(a for a in (*rest, *tested) if a.state != one.state and a.crop != one.crop)
            swapped = WORDED[fact][0].format(s=one.state, c=away.crop)
            reworded = (_worded(one, fact, 1), True)
            for subset, candidates in (
                    ("fact", (reworded, (_worded(one, other, 0), False), (_worded(one, other, 1), False))),
                    ("section", (reworded, (swapped, False), (_worded(away, fact, 0), False)))):
                rows[subset] += self._candidates(subset, one, fact, candidates)
        return write_examples(ctx.folder, rows)

    def _candidates(self, subset: str, one: Advice, fact: str, candidates: Sequence[tuple[str, bool]]) -> list[Example]:
        cluster, made = f"{one.section}/{fact}", []
        for n, (candidate, good) in enumerate(candidates):
            name, about = f"{subset}/{cluster}/{n}", {"good": good, "said": candidate}
            made.append(_asked(name, candidate, one, fact, **about) if self.form == "question" else
                        question(name, "Which question?", _worded(one, fact, 0), cluster=cluster, meta=about))
        return made


def _worded(advice: Advice, fact: str, wording: int) -> str:
    return WORDED[fact][wording].format(s=advice.state, c=advice.crop)


def _asked(name: str, asked: str, advice: Advice, fact: str, **meta: Any) -> Example:
    return question(name, asked, str(getattr(advice, fact)), passage=passage_of(advice).shown, source=advice.section,
                    cluster=f"{advice.section}/{fact}", meta=meta)


def _rated(one: Advice, other: Advice, fact: str) -> list[Example]:
    """The reference, the reference in a sentence, another fact of the section, and the same fact of another section."""
    right = str(getattr(one, fact))
    facts = list(WORDED)
    wrong = (str(getattr(one, facts[(facts.index(fact) + 1) % len(facts)])), str(getattr(other, fact)))
    answers = [(right, 5.0), (SENTENCE.format(v=right), 4.0), *((w, 1.0) for w in wrong if w != right)]
    return [_asked(f"rate/{one.section}/{fact}/{n}", _worded(one, fact, 0), one, fact, candidate=said, rating=rating)
            for n, (said, rating) in enumerate(answers)]
