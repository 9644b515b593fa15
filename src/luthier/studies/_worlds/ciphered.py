"""ciphered-reviews: reviews in English, and others in a language that is English with its letters exchanged.

Each letter stands for another one, everywhere the same and never for itself; signs, spaces and capitals stay. No review is
there in both languages. Subsets:

    pretrain      reviews to be read, `strange` of them ciphered       train    English, with their sentiment
    here, there   further ones of each language, to be read            english, cipher   the same, kept out
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds._names import words
from luthier.studies._worlds.opinions import DOMAINS, LABELS, _remark, review


class CipheredReviews(Step, name="ciphered-reviews"):
    """Reviews in two languages, of which one has labels."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    texts: int = Field(3000, ge=5, description="reviews that a model has read before, of both languages")
    strange: float = Field(0.2, gt=0, lt=1, description="share of these in the other language")
    more: int = Field(480, ge=2, description="further reviews of each language to be read")
    train: int = Field(400, ge=2, description="reviews with labels, all English")
    tests: int = Field(400, ge=2, description="reviews of each language that are asked")
    mixed: float = Field(0.3, ge=0, le=1, description="share of reviews with a remark of the other kind")
    seed: int = Field(0, ge=0, description="which reviews; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Write reviews, and cipher some."""
        draw = Rng(self.seed).within("ciphered-reviews")
        names, table = words(draw("names"), 60), cipher(draw("letters"))
        foreign = round(self.strange * self.texts)
        counts = {"pretrain": (self.texts - foreign, foreign), "here": (self.more, 0), "there": (0, self.more),
                  "train": (self.train, 0), "english": (self.tests, 0), "cipher": (0, self.tests)}
        labelled = ("train", "english", "cipher")
        made = {subset: [self._row(f"{subset}/{n}", n, subset in labelled, table if n >= plain else {}, draw, names)
                         for n in range(plain + strange)] for subset, (plain, strange) in counts.items()}
        return write_examples(ctx.folder, made, labels=sorted(LABELS))

    def _row(self, name: str, n: int, labelled: bool, table: Mapping[int, int], draw: Rng, names: list[str]) -> Example:
        rng, domain, good = draw("row", name), list(DOMAINS)[n // 2 % len(DOMAINS)], n % 2 == 0
        odd = bool(rng.random() < self.mixed)
        aspects = [list(DOMAINS[domain])[i] for i in rng.permutation(len(DOMAINS[domain]))[:3]]
        said = [_remark(domain, aspect, good != (odd and i == 0), rng) for i, aspect in enumerate(aspects)]
        turn = Turn("user", (Part(review(said, names, rng).translate(table)),))
        return Example(name, (turn,), task="classify" if labelled else "text", cluster=name, source=domain,
                       label=LABELS[good] if labelled else None)


def cipher(draw: np.random.Generator) -> dict[int, int]:
    """A table for `str.translate`: each letter becomes the next one of a drawn round of all, so that none stays."""
    order = [string.ascii_lowercase[i] for i in draw.permutation(26)]
    pairs = list(zip(order, order[1:] + order[:1], strict=True))
    return {ord(f(a)): ord(f(b)) for a, b in pairs for f in (str.lower, str.upper)}
