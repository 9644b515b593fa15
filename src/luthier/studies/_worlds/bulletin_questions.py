"""bulletin-questions: what is asked about bulletins in training, what in tests, and what is read.

Sections are `known` (trained on, and asked about in tests), `unseen` (kept out), of a state that is kept out whole
(`state`), or trained on only. Subsets, of which `subsets` names those that are written:

    all                     a question about each fact that may be trained on, to be split
    known, unseen, state    test questions, worded unlike any training question
    statements, pages       facts of known sections in a wording that stands nowhere else, and those sections, to be read
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn, question
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.bulletins import CROPS, Advice, passage_of, told

Fact = Literal["week", "rate", "pest"]
Subset = Literal["all", "known", "unseen", "state", "statements", "pages"]
# Fact: how it is asked in training, how in tests, and how it is stated for reading only.
WORDED: Mapping[str, tuple[str, str, str]] = {
    "week": ("In {s}, when should {c} be sown?", "A farmer in {s} asks at what time to plant {c}. What do you say?",
             "The planting of {c} in {s} falls in {v}."),
    "rate": ("In {s}, how much seed does a hectare of {c} take?",
             "A farmer in {s} asks what weight of {c} to buy for a field. What do you say?",
             "For one field of {c}, people in {s} buy {v}."),
    "pest": ("In {s}, what attacks {c} when it rains?", "A farmer in {s} asks which animal endangers {c}. What do you say?",
             "The {c} of {s} has an enemy: {v}."),
}


class BulletinQuestions(Step, name="bulletin-questions"):
    """Questions about bulletins in wordings of training and of tests."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    states: int = Field(10, ge=2, le=40, description="invented states, as many as the documents have")
    crops: int = Field(12, ge=2, le=len(CROPS), description="crops, as many as the documents have")
    held_states: int = Field(1, ge=0, description="states that are kept out whole")
    unseen: int = Field(24, ge=1, description="sections of other states that are kept out")
    known: int = Field(24, ge=1, description="sections that are trained on and asked about in tests")
    facts: tuple[Fact, ...] = Field(("week", "rate", "pest"), min_length=1, description="facts that tests ask for")
    subsets: tuple[Subset, ...] = Field(("all",), min_length=1, description="what is written")
    seed: int = Field(0, ge=0, description="which world; a study's training seeds leave it as it is")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Write the subsets that have rows. Raises UserError for a world that is too small."""
        parts = self._parts()
        rows = {name: [_asked(name, a, fact, 1) for a in parts[name] for fact in self.facts]
                for name in ("known", "unseen", "state")}
        rows["all"] = [_asked("all", a, fact, 0) for a in (*parts["known"], *parts["rest"]) for fact in WORDED]
        rows["statements"] = [_text(f"statement/{a.section}/{fact}", _worded(a, fact, 2), a)
                              for a in parts["known"] for fact in WORDED]
        rows["pages"] = [_text(f"page/{a.section}", f"{a.state} / {a.crop}\n{a.text}", a) for a in parts["known"]]
        return write_examples(ctx.folder, {name: rows[name] for name in self.subsets if rows[name]})

    def _parts(self) -> dict[str, list[Advice]]:
        advice = told(self.states, self.crops, self.seed)
        names = list(dict.fromkeys(a.state for a in advice))
        away = set(names[1:1 + self.held_states])  # the first state, of the same region, is trained on
        here = [a for a in advice if a.state not in away]
        if len(here) <= self.known + self.unseen:
            raise UserError(f"bulletin-questions: {len(here)} sections are too few for {self.known} known and {self.unseen} "
                            "unseen ones and others to train on. Raise states.")
        order = [here[i] for i in Rng(self.seed).within("bulletin-questions")("sections").permutation(len(here))]
        ends = (self.known, self.known + self.unseen)
        return {"known": order[:ends[0]], "unseen": order[ends[0]:ends[1]], "rest": order[ends[1]:],
                "state": [a for a in advice if a.state in away]}


def _worded(advice: Advice, fact: str, wording: int) -> str:
    return WORDED[fact][wording].format(s=advice.state, c=advice.crop, v=getattr(advice, fact))


def _asked(subset: str, advice: Advice, fact: str, wording: int) -> Example:
    answer = str(getattr(advice, fact))
    return question(f"{subset}/{advice.section}/{fact}", _worded(advice, fact, wording), answer,
                    passage=passage_of(advice).shown, source=advice.section, cluster=advice.section, references=(answer,),
                    meta={"generator": "bulletins", "gold": [advice.section]})


def _text(name: str, text: str, advice: Advice) -> Example:
    return Example(name, (Turn("assistant", (Part(text),), target=True),), task="text", cluster=advice.section)
