"""labelled-reviews: reviews to be read (`pretrain`), and reviews with labels, as rows that a head or a writer can learn.

`problem: sentiment` has one label a review, `aspects` those of its three remarks, joined by "|". Each row has its label, and
the label in words as an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds._names import words
from luthier.studies._worlds.opinions import DOMAINS, LABELS, _remark, review


class LabelledReviews(Step, name="labelled-reviews"):
    """Texts without labels, and rows with them."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    problem: Literal["sentiment", "aspects"] = Field("sentiment", description="what is to be told of a review")
    texts: int = Field(3000, ge=4, description="reviews that are only read")
    train: int = Field(400, ge=2, description="rows to learn from")
    tests: int = Field(300, ge=2, description="rows of `test`; half as many in `dev`")
    mixed: float = Field(0.3, ge=0, le=1, description="share of reviews with a remark of the other kind")
    seed: int = Field(0, ge=0, description="which reviews; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Write reviews."""
        draw = Rng(self.seed).within("labelled-reviews")
        names = words(draw("names"), 60)
        counts = {"pretrain": self.texts, "train": self.train, "dev": max(1, self.tests // 2), "test": self.tests}
        made = {subset: [self._row(f"{subset}/{n}", n, subset != "pretrain", draw, names) for n in range(count)]
                for subset, count in counts.items()}
        return write_examples(ctx.folder, made)

    def _row(self, name: str, n: int, labelled: bool, draw: Rng, names: list[str]) -> Example:
        rng = draw("row", name)
        domain = list(DOMAINS)[n % len(DOMAINS)]
        good, odd = bool(rng.random() < 0.5), bool(rng.random() < self.mixed)
        aspects = [list(DOMAINS[domain])[i] for i in rng.permutation(len(DOMAINS[domain]))[:3]]
        said = [_remark(domain, aspect, good != (odd and i == 0), rng) for i, aspect in enumerate(aspects)]
        asked = Turn("user", (Part(review(said, names, rng), name="text"),))
        if not labelled:
            return Example(name, (asked,), task="text", cluster=name)
        label = LABELS[good] if self.problem == "sentiment" else "|".join(sorted(aspects))
        return Example(name, (asked, Turn("assistant", (Part(f" {label}"),), target=True)), task="completion", cluster=name,
                       label=label, references=(label,), source=domain)
