"""strange-opinions: reviews of hotels by what they are about, and others that a detector should not take for these.

`train` and `test` are about bed, noise or bath, which is their label. The subset `ood` is strange in one of two ways: reviews
of meals, films and tools (another domain), or of the desk of a hotel (the same domain, a class that was held out). One remark
says what a review of a hotel is about, the others could stand in any; those of other domains are about nothing else. Asides
name very many invented persons, since a detector finds whatever is new to texts that are all alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds._names import words
from luthier.studies._worlds.opinions import DOMAINS, review

HOME, HELD = "hotels", "desk"
PERSONS = 1500
COMMON = ("I would choose it again", "once was enough", "it kept its promise", "I had hoped for more", "my sister loved it",
          "the pictures told the truth", "I told the neighbours about it", "it was a gift")


class StrangeOpinions(Step, name="strange-opinions"):
    """Reviews of hotels by aspect, and strange ones."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    strange: Literal["domain", "class"] = Field("domain", description="what is strange: another domain, or a held-out class "
                                                                      "of the same")
    train_rows: int = Field(450, ge=3, description="reviews to learn from, and the bank of a detector")
    test_rows: int = Field(150, ge=3, description="further reviews, and as many strange ones")
    seed: int = Field(0, ge=0, description="which reviews; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """`train` and `test` are the same whatever is strange."""
        draw = Rng(self.seed).within("strange-opinions")
        names = words(draw("names"), PERSONS)
        known = [(HOME, aspect) for aspect in DOMAINS[HOME] if aspect != HELD]
        strange = [(HOME, HELD)] if self.strange == "class" else [(d, a) for d in DOMAINS if d != HOME for a in DOMAINS[d]]

        def rows(subset: str, count: int, kinds: list[tuple[str, str]]) -> list[Example]:
            return [_row(f"{subset}/{n}", *kinds[n % len(kinds)], names, draw(subset, n)) for n in range(count)]

        return write_examples(ctx.folder, {
            "train": rows("train", self.train_rows, known), "test": rows("test", self.test_rows, known),
            "ood": rows(f"strange-{self.strange}", self.test_rows, strange)}, labels=sorted(a for _, a in known))


def _row(name: str, domain: str, aspect: str, names: list[str], rng: np.random.Generator) -> Example:
    own = [remark for side in DOMAINS[domain][aspect] for remark in side]
    order = rng.permutation(len(own))
    said = [own[order[0]], *(COMMON[i] for i in rng.permutation(len(COMMON))[:2])] if domain == HOME else \
        [own[i] for i in order[:3]]
    return Example(name, (Turn("user", (Part(review(said, names, rng)),)),), task="classify", source=domain, cluster=name,
                   label=aspect)
