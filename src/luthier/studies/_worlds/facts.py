"""facts-world: invented persons, and what a model may know of them.

Each person has one value for each of four relations. A share of the facts is never told; every other one is told 1 to
`most_mentions` times, most of them rarely, as a statement in one of several wordings or as one of five questions about the
same relation that are asked and answered in a row. So a model that learns these texts knows facts well, a little or not at
all, and can be asked with solved examples. Wordings of statements and questions are disjoint.

Subsets: `pretrain` (texts), `asked` (each question of the texts again by itself, as often as they ask it), `told` and
`untold` (each fact once as a question with its answer), `statements` (texts that restate told facts in a wording of their
own).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Example, Part, Turn, question
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds._names import words

# Relation: how it is asked, how it is told, and how it is restated for reading only.
RELATIONS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "town": ("Where does {p} live?", ("{p} lives in {v}.", "The home of {p} is {v}."), "You find {p} in {v}."),
    "craft": ("What does {p} make?", ("{p} makes {v}.", "The work of {p} is {v}."), "From {p} you can buy {v}."),
    "pet": ("Which pet has {p}?", ("{p} has a {v}.", "The pet of {p} is a {v}."), "With {p} walks a {v}."),
    "dish": ("Which dish likes {p}?", ("{p} likes {v}.", "The dish of {p} is {v}."), "At noon {p} eats {v}."),
}
BLOCK = 5  # questions asked and answered in a row


class FactsWorld(Step, name="facts-world"):
    """Invented persons with facts that are told often, rarely or never."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    persons: int = Field(140, ge=4, description="persons; each has four facts")
    values: int = Field(24, ge=2, description="values of each relation, one word each")
    untold_share: float = Field(0.33, ge=0, lt=1, description="share of facts that are never told")
    most_mentions: int = Field(20, ge=1, description="how often the best known facts are told")
    seed: int = Field(0, ge=0, description="which world; a study's training seeds leave it as it is")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Draw persons, facts and mentions, and write the texts."""
        draw = Rng(self.seed).within("facts-world")
        facts = self._facts(draw)
        counts = draw("mentions").random(len(facts))
        told = draw("told").permutation(len(facts))[: round(len(facts) * (1 - self.untold_share))]
        mentions = {int(i): 1 + int((self.most_mentions - 1) * counts[i] ** 2) for i in told}
        texts, order = self._texts(facts, mentions, draw)
        again = [replace(_asked(facts[i]), id=f"asked/{n}") for n, i in enumerate(order)]
        asked = {"told": [_asked(facts[i], n=mentions[i]) for i in sorted(mentions)],
                 "untold": [_asked(fact) for i, fact in enumerate(facts) if i not in mentions]}
        restated = [_text(f"statement/{i}", RELATIONS[facts[i][1]][2].format(p=facts[i][0], v=facts[i][2]))
                    for i in sorted(mentions)]
        ctx.log(f"{len(facts)} facts, {len(mentions)} told in {sum(mentions.values())} mentions")
        return write_examples(ctx.folder, {"pretrain": texts, "asked": again, **asked, "statements": restated})

    def _facts(self, draw: Rng) -> list[tuple[str, str, str]]:
        """(person, relation, value), each person under each relation once."""
        side = int(np.ceil(np.sqrt(self.persons)))
        given = words(draw("given"), side)
        family = words(draw("family"), side, taken=frozenset(given))
        taken = frozenset([*given, *family])
        values = {}
        for relation in RELATIONS:
            values[relation] = words(draw("values", relation), self.values, taken=taken)
            taken |= frozenset(values[relation])
        names = [f"{a} {b}" for a in given for b in family][: self.persons]
        chosen = draw("facts").integers(self.values, size=(len(names), len(RELATIONS)))
        return [(name, relation, values[relation][chosen[i, j]])
                for i, name in enumerate(names) for j, relation in enumerate(RELATIONS)]

    def _texts(self, facts: list[tuple[str, str, str]], mentions: Mapping[int, int], draw: Rng
               ) -> tuple[list[Example], list[int]]:
        """Statements one by one and blocks of questions of one relation; and the facts that are asked, in order."""
        said: list[str] = []
        all_asked: list[int] = []
        waiting: dict[str, list[int]] = {r: [] for r in RELATIONS}
        for i, count in mentions.items():
            kinds = draw("kinds", i).random(count)
            wordings = draw("wordings", i).integers(len(RELATIONS[facts[i][1]][1]), size=count)
            for kind, wording in zip(kinds, wordings, strict=True):
                if kind < 0.5:
                    waiting[facts[i][1]].append(i)
                else:
                    said.append(RELATIONS[facts[i][1]][1][wording].format(p=facts[i][0], v=facts[i][2]))
        for relation, asked in waiting.items():
            order = [asked[j] for j in draw("blocks", relation).permutation(len(asked))]
            all_asked += order
            for start in range(0, len(order), BLOCK):
                said.append("\n\n".join(f"Question: {RELATIONS[relation][0].format(p=facts[i][0])}\nAnswer: {facts[i][2]}"
                                        for i in order[start:start + BLOCK]))
        return [_text(f"pretrain/{n}", text) for n, text in enumerate(said)], all_asked


def _asked(fact: tuple[str, str, str], n: int = 0) -> Example:
    person, relation, value = fact
    return question(f"{person}/{relation}", RELATIONS[relation][0].format(p=person), value, cluster=f"{person}/{relation}",
                    source=person, references=(value,), meta={"relation": relation, "mentions": n})


def _text(name: str, text: str, **meta: Any) -> Example:
    return Example(name, (Turn("assistant", (Part(text),), target=True),), task="text", cluster=name, meta=meta)
