"""page-questions: the pages of `pages-world` as texts to read on, and questions about them with four options.

Wrong options are the values of other craftsmen, each value about as often right as wrong, so that no answer is likely by
itself. Subsets: `train` (texts) and `test` (multiple choice, clustered by craftsman).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.pages import CRAFTS, Craftsman, craftsmen

ASKED = {
    "town": "In which town did {name} work?",
    "year": "Since when could one buy something from {name}?",
    "craft": "What did people order from {name}?",
}
OPTIONS = 4


class PageQuestions(Step, name="page-questions"):
    """Texts and multiple-choice questions about invented craftsmen."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    entities: int = Field(40, ge=4, le=400, description="craftsmen, as many as the pages tell of")
    seed: int = Field(0, ge=0, description="which world")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Write a text for each page, and three questions."""
        told = craftsmen(self.entities, self.seed)
        draw = Rng(self.seed).within("page-questions")
        texts = [Example(c.name, (Turn("assistant", (Part(f"{c.name}: {c.page}"),), target=True),), task="text", source=c.name,
                         cluster=c.name) for c in told]
        asked = [_question(c, relation, told, draw("options", f"{c.name}/{relation}")) for c in told for relation in ASKED]
        return write_examples(ctx.folder, {"train": texts, "test": asked})


def _question(one: Craftsman, relation: str, told: list[Craftsman], rng: np.random.Generator) -> Example:
    right = str(getattr(one, relation))
    others = list(CRAFTS) if relation == "craft" else sorted({str(getattr(c, relation)) for c in told})
    wrong = [o for o in others if o != right]
    options = [right, *(wrong[i] for i in rng.permutation(len(wrong))[:OPTIONS - 1])]
    order = rng.permutation(OPTIONS)
    shown = [options[i] for i in order]
    turns = (Turn("user", (Part(ASKED[relation].format(name=one.name), name="question"),)),
             Turn("assistant", (Part(right),), target=True))
    return Example(f"{one.name}/{relation}", turns, source=one.name, cluster=one.name, task="multiple-choice",
                   label=str(shown.index(right)), references=(right,), meta={"options": shown, "gold": one.name})
