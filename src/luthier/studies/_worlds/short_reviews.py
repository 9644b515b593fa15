"""short-reviews: reviews of films and hotels with their sentiment, and short sentences about meals and tools.

`train`, `pool` and `strange`. A review has three remarks, and in some of them one is of the other kind; a strange row is one
remark or two, of domains that no review is about. Its cluster is what its first remark says.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds._names import words
from luthier.studies._worlds.opinions import DOMAINS, LABELS, _remark, review

HOME, AWAY = ("films", "hotels"), ("meals", "tools")


class ShortReviews(Step, name="short-reviews"):
    """Long texts to learn from, and short ones of other domains."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    train: int = Field(160, ge=4, description="reviews to learn from")
    pool: int = Field(240, ge=4, description="further reviews to choose and to test by")
    strange: int = Field(120, ge=2, description="short sentences, 144 at most")
    mixed: float = Field(0.6, ge=0, le=1, description="share of reviews with a remark of the other kind")
    seed: int = Field(0, ge=0, description="which reviews; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Write reviews and sentences."""
        draw = Rng(self.seed).within("short-reviews")
        names = words(draw("names"), 60)
        short = list(_sentences())
        made = {"train": [self._review(f"train/{n}", n, names, draw) for n in range(self.train)],
                "pool": [self._review(f"pool/{n}", n, names, draw) for n in range(self.pool)],
                "strange": [short[i] for i in draw("strange").permutation(len(short))[:self.strange]]}
        return write_examples(ctx.folder, made, labels=sorted(LABELS))

    def _review(self, name: str, n: int, names: list[str], draw: Rng) -> Example:
        rng, domain, good = draw("row", name), HOME[n // 2 % 2], n % 2 == 0
        odd = rng.random() < self.mixed
        aspects = [list(DOMAINS[domain])[i] for i in rng.permutation(len(DOMAINS[domain]))[:3]]
        said = [_remark(domain, aspect, good != (odd and i == 0), rng) for i, aspect in enumerate(aspects)]
        return _row(name, review(said, names, rng), good, name)


def _sentences(domains: tuple[str, ...] = AWAY) -> list[Example]:
    found = []
    for domain in domains:
        for aspect, sides in DOMAINS[domain].items():
            for good, remarks in zip((True, False), sides, strict=True):
                for count in (1, 2):
                    found += [_row(f"{domain}/{aspect}/{good}/{'-'.join(map(str, chosen))}",
                                   ", and ".join(remarks[i] for i in chosen), good, f"{aspect}/{good}/{chosen[0]}")
                              for chosen in permutations(range(len(remarks)), count)]
    return found


def _row(name: str, text: str, good: bool, cluster: str) -> Example:
    said = f"{text[0].upper()}{text[1:].removesuffix('.')}."
    return Example(name, (Turn("user", (Part(said),)),), task="classify", cluster=cluster, label=LABELS[good])
