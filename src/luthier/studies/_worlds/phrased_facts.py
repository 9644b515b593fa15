"""phrased-facts: two tasks about a facts world, each asked in wordings that tuning sees and in others that it does not.

`qa` asks for the value of a fact that the model was told, of four values of the relation. `re` shows a sentence that
states a fact and asks which of the four relations it is about. Twelve wordings of each task are for tuning, of which
the first `templates` are used, one drawn for each row; six are never seen. Persons in tests are none of those in
training.

Subsets: `train` (questions with answers), `observed` and `unobserved` (multiple choice: every test fact of both tasks
under the first three wordings of tuning, and under the six others; a cluster is a fact), and both of each task alone:
`qa-observed`, `qa-unobserved`, `re-observed`, `re-unobserved`.
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

OBSERVED: Mapping[str, tuple[str, ...]] = {
    "qa": ("{q}", "Please answer: {q}", "Tell me this. {q}", "{q} Say one word.", "I ask you: {q}",
           "Answer the question. {q}",
           "{q} What do you say?", "Now this one: {q}", "Do you know this? {q}", "{q} Give the answer.", "One more: {q}",
           "Here is a question. {q}"),
    "re": ("{s} What is this about?", "Read: {s} Which kind of fact is it?", "{s} Name the relation.", "Say what {s} tells.",
           "{s} This is about what?", "Which relation? {s}", "Sort this sentence: {s}", "{s} Its kind?",
           "The kind of this: {s}", "{s} Choose the relation.", "What does this tell? {s}", "Label it. {s}"),
}
UNOBSERVED: Mapping[str, tuple[str, ...]] = {
    "qa": ("Somebody wants to know the following: {q}", "{q} Think of what you have read and reply.",
           "Let us see whether you remember. {q}", "Quiz, next card. {q}", "Write down what is asked for. {q}",
           "{q} (Only the answer counts.)"),
    "re": ("Consider the sentence that follows and decide what it is about. {s}", "{s} Under which heading does this belong?",
           "An editor files sentences by topic. {s} The topic?", "Quiz, next card. {s} Topic?",
           "Put the following under one heading. {s}", "{s} (Only the relation counts.)"),
}


class PhrasedFacts(Step, name="phrased-facts"):
    """Two tasks in wordings for tuning and in others."""

    inputs: ClassVar[dict[str, str]] = {"facts": "examples"}
    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    templates: int = Field(3, ge=1, le=12, description="wordings of each task that tuning sees")
    train_rows: int = Field(320, ge=8, description="training rows, half of each task")
    test_facts: int = Field(30, ge=1, description="facts of each task that are asked in tests")
    least_mentions: int = Field(4, ge=1, description="how often a fact was told that is asked for")
    seed: int = Field(0, ge=0, description="which rows; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError where too few facts are known well."""
        draw = Rng(self.seed).within("phrased-facts")
        told = list(inputs["facts"].examples("told"))
        known = [e for e in told if e.meta["mentions"] >= self.least_mentions]
        known = [known[i] for i in draw("facts").permutation(len(known))]
        test = known[:self.test_facts]
        away = {e.source for e in test}
        train = [e for e in known if e.source not in away]
        if len(test) < self.test_facts or not train:
            raise UserError(f"phrased-facts: {len(known)} facts were told {self.least_mentions} times or more: too few for "
                            f"{self.test_facts} test facts and others to train on. Raise persons.")
        values = {r: sorted({e.answer for e in told if e.meta["relation"] == r}) for r in RELATIONS}
        few = [r for r, found in values.items() if len(found) < 4]
        if few:
            raise UserError(f"phrased-facts: {few[0]} has {len(values[few[0]])} values, and four options are asked. "
                            "Raise values.")
        rows = [self._row(task, train[n % len(train)], n, draw) for n in range(self.train_rows // 2) for task in ("qa", "re")]
        found = {f"{task}-{name}": [_choice(task, fact, wording, values, draw) for fact in test
                                    for wording in wordings]
                 for task in ("qa", "re")
                 for name, wordings in (("observed", OBSERVED[task][:3]), ("unobserved", UNOBSERVED[task]))}
        # An id stands in one subset alone: records are known by it.
        both = {name: [replace(e, id=f"both/{e.id}") for task in ("qa", "re") for e in found[f"{task}-{name}"]]
                for name in ("observed", "unobserved")}
        return write_examples(ctx.folder, {"train": rows, **both, **found})

    def _row(self, task: str, fact: Example, number: int, draw: Rng) -> Example:
        """A training row in one of the wordings that tuning sees, with the others as its paraphrases."""
        seen = OBSERVED[task][:self.templates]
        wording = seen[int(draw(f"wording/{task}", number).integers(len(seen)))]
        return question(f"train/{task}/{number}", _worded(task, fact, wording), _right(task, fact), source=fact.source,
                        meta={"paraphrases": [_worded(task, fact, w) for w in seen if w != wording]})


def _worded(task: str, fact: Example, wording: str) -> str:
    relation = str(fact.meta["relation"])
    said = RELATIONS[relation][1][0].format(p=fact.source, v=fact.answer)
    return wording.format(q=fact.part("question"), s=said)


def _right(task: str, fact: Example) -> str:
    return fact.answer if task == "qa" else str(fact.meta["relation"])


def _choice(task: str, fact: Example, wording: str, values: Mapping[str, list[str]], draw: Rng) -> Example:
    """A fact with four options, the same under every wording."""
    right, options = _right(task, fact), list(RELATIONS)
    if task == "qa":
        others = [v for v in values[str(fact.meta["relation"])] if v != right]
        options = [right, *(others[i] for i in draw("others", fact.id).permutation(len(others))[:3])]
        options = [options[i] for i in draw("order", fact.id).permutation(len(options))]
    return question(f"{task}/{fact.id}/{wording}", _worded(task, fact, wording), task="multiple-choice",
                    label=options.index(right), cluster=f"{task}/{fact.id}", source=fact.source, meta={"options": options})
