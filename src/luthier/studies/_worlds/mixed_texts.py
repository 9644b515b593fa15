"""mixed-texts: short texts of three domains, unequally many: manuals of invented functions, talk, and reviews.

Subsets: `pretrain` and `pool` (the same mixture, other texts; `source` is the domain), `train` and `test` (reviews with their
sentiment, as of `opinions`), and `aim` (reviews without it: what a warm-up should move towards).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds._names import words
from luthier.studies._worlds.opinions import DOMAINS, LABELS, _remark, review

NAMES = ("manual", "talk", "review")
_MANUAL = ("The function {f} returns the {t} of its argument {a}.", "If {a} is empty, {f} raises an error of type {t}.",
           "The class {t} has a method {f} that takes {a}.", "{f}({a}) is the same as {t}.{f} of {a}.",
           "A {t} given as {a} is copied before {f} changes it.")
_TALK = ("Hello {n}, are you coming to {p} tonight?", "No {n}, I have to be at {p} by noon.", "Did {n} tell you about {p}?",
         "We met {n} on the way to {p}.", "Tell {n} that I will wait at {p}, please.")


class MixedTexts(Step, name="mixed-texts"):
    """Texts of three domains, and reviews to be told apart."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    texts: int = Field(6000, ge=20, description="texts of `pretrain`, and as many again in `pool`")
    shares: tuple[float, ...] = Field((0.8, 0.15, 0.05), description="share of manual, talk and review")
    labelled: int = Field(200, ge=2, description="reviews with labels to learn from")
    tests: int = Field(400, ge=2, description="reviews of the test")
    aims: int = Field(300, ge=2, description="reviews without labels that a warm-up is chosen for")
    seed: int = Field(0, ge=0, description="which texts; a study's training seeds leave them as they are")

    def check(self) -> None:
        """Refuse shares that are none."""
        if len(self.shares) != 3 or min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise UserError(f"mixed-texts.shares is {self.shares}: three shares that sum to 1.")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Write texts of every domain."""
        draw = Rng(self.seed).within("mixed-texts")
        names = words(draw("names"), 120)
        made: dict[str, list[Example]] = {}
        for subset in ("pretrain", "pool"):
            kinds = draw("kinds", subset).choice(3, size=self.texts, p=self.shares)
            made[subset] = [self._text(NAMES[kind], f"{subset}/{n}", names, draw(subset, n)) for n, kind in enumerate(kinds)]
        for subset, count in (("train", self.labelled), ("test", self.tests), ("aim", self.aims)):
            made[subset] = [self._review(f"{subset}/{n}", n % 2 == 0, names, draw(subset, n)) for n in range(count)]
        return write_examples(ctx.folder, made, labels=sorted(LABELS))

    def _text(self, kind: str, name: str, names: list[str], rng: np.random.Generator) -> Example:
        if kind == "review":
            made = self._review(name, bool(rng.random() < 0.5), names, rng)
            return Example(name, made.turns, task="text", source=kind, cluster=name)
        forms = _MANUAL if kind == "manual" else _TALK
        said = []
        for form in (forms[i] for i in rng.permutation(len(forms))[:3]):
            a, b, c = (names[i].lower() if kind == "manual" else names[i] for i in rng.integers(len(names), size=3))
            said.append(form.format(f=a, t=b, a=c, n=a, p=b))
        return Example(name, (Turn("user", (Part(" ".join(said), name="text"),)),), task="text", source=kind, cluster=name)

    def _review(self, name: str, good: bool, names: list[str], rng: np.random.Generator) -> Example:
        domain = list(DOMAINS)[int(rng.integers(len(DOMAINS)))]
        odd = rng.random() < 0.5
        aspects = [list(DOMAINS[domain])[i] for i in rng.permutation(len(DOMAINS[domain]))[:3]]
        said = [_remark(domain, aspect, good != (odd and i == 0), rng) for i, aspect in enumerate(aspects)]
        return Example(name, (Turn("user", (Part(review(said, names, rng), name="text"),)),), task="classify", source="review",
                       cluster=name, label=LABELS[good])
