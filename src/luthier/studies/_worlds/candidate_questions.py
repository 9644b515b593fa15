"""candidate-questions: questions about bulletins that lead to the intended answer, and some that lead elsewhere.

    read       questions with passage and answer, for a reader, in both wordings; of sections that no test asks about
    rate       answers with their rating by construction, for a scorer: the reference 5, within a sentence 4, another value 1.
               Asked is for the intended fact, or for another one: then what rightly answers the question is rated 1, and the
               intended answer 5, so that no rating can be guessed from question and answer alone
    fact       the question in other words; against questions about another fact of the passage, in the reference's words and
               in other words
    section    the question in other words; against the reference with another crop, and a question about another state
    right      the question in other words with the intended answer in `meta["said"]`: a scorer must give much for it
    unrelated  the same with a value from another section and of another fact: it must give little
    pool       of sections of their own: two questions that lead to the intended answer and two that lead to another fact
    drawn      one of each four of the pool, by chance
    held       a question in other words about each tested section, for a reader that was tuned on some of the pool

In `fact` and `section` a cluster is a passage and an intended answer. As `question` a row is a candidate beside passage and
intended answer (for a metric that needs no reference); as `reference` the candidate stands in `meta["said"]`, and the reference
question is the right answer (for a metric of overlap).
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
    states: int = Field(14, ge=2, le=40, description="invented states")
    crops: int = Field(12, ge=2, le=len(CROPS), description="crops of each")
    tested: int = Field(60, ge=1, description="passages that are asked about in tests")
    pooled: int = Field(48, ge=0, description="passages of the pool, apart from those that reader and scorer learn from")
    seed: int = Field(0, ge=0, description="which world")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Write the subsets. Raises UserError for a world that is too small."""
        advice, draw = told(self.states, self.crops, self.seed), Rng(self.seed).within("candidate-questions")
        if len(advice) <= self.tested + self.pooled:
            raise UserError(f"candidate-questions: {len(advice)} sections are too few for {self.tested} tested ones, a pool of "
                            f"{self.pooled} and others to learn from. Raise states.")
        order = [advice[i] for i in draw("sections").permutation(len(advice))]
        tested, pooled = order[:self.tested], order[self.tested:self.tested + self.pooled]
        rest = order[self.tested + self.pooled:]
        read = [_asked(f"read/{a.section}/{fact}/{n}", _worded(a, fact, n), a, fact) for a in rest for fact in WORDED
                for n in (0, 1)]
        rate = [row for i, a in enumerate(rest) for fact in WORDED for row in _rated(a, rest[i - 1], fact, i % 2)]
        rows: dict[str, list[Example]] = {"read": read, "rate": rate, "fact": [], "section": []}
        rows |= {"right": [], "unrelated": [], "held": [], **_pool(pooled, draw)}
        for i, one in enumerate(tested):
            facts = list(WORDED)
            fact, other = facts[i % len(facts)], facts[(i + 1) % len(facts)]
            away = next(a for a in (*rest, *tested) if a.state != one.state and a.crop != one.crop)
            rows["right"].append(_said("right", one, fact, str(getattr(one, fact))))
            strange = next(v for a in (*rest, *tested) if (v := str(getattr(a, other))) not in passage_of(one).shown)
            rows["unrelated"].append(_said("unrelated", one, fact, strange))
            rows["held"].append(_asked(f"held/{one.section}/{fact}", _worded(one, fact, 1), one, fact, gold=[one.section]))
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


def _said(subset: str, one: Advice, fact: str, answer: str) -> Example:
    return _asked(f"{subset}/{one.section}/{fact}", _worded(one, fact, 1), one, fact, said=answer)


def _after(fact: str) -> str:
    facts = list(WORDED)
    return facts[(facts.index(fact) + 1) % len(facts)]


def _rated(one: Advice, other: Advice, fact: str, wording: int) -> list[Example]:
    """The reference, the reference in a sentence, another fact of the section, the same fact of another section; and to a
    question about another fact the intended answer and the right one. All of a section is in one wording, which else would
    tell them apart.
    """
    right, beside = str(getattr(one, fact)), str(getattr(one, _after(fact)))
    wrong = (beside, str(getattr(other, fact)))
    led, astray = _worded(one, fact, wording), _worded(one, _after(fact), wording)
    answers = [(led, right, 5.0), (led, SENTENCE.format(v=right), 4.0), *((led, w, 1.0) for w in wrong if w != right),
               (astray, right, 5.0), (astray, beside, 1.0)]
    return [_asked(f"rate/{one.section}/{fact}/{n}", asked, one, fact, candidate=said, rating=rating)
            for n, (asked, said, rating) in enumerate(answers)]


def _pool(pooled: Sequence[Advice], draw: Rng) -> dict[str, list[Example]]:
    """Four candidates for each passage and answer, half of which lead to another fact; and one of them by chance."""
    rows: dict[str, list[Example]] = {"pool": [], "drawn": []}
    for one in pooled:
        for fact in WORDED:
            texts = [(_worded(one, asked, n), asked == fact) for asked in (fact, _after(fact)) for n in (0, 1)]
            made = [_asked(f"pool/{one.section}/{fact}/{n}", text, one, fact, good=good)
                    for n, (text, good) in enumerate(texts)]
            rows["pool"] += made
            rows["drawn"].append(made[int(draw("drawn", f"{one.section}/{fact}").integers(len(made)))])
    return rows
