"""two-tracks: labelled texts of eight small tasks in two families, six with rows to learn from and two with few.

    sentiment0 … sentiment2   whether a review of films, hotels or tools is good or bad      sentiment   the same of meals
    topic0 … topic2           which of two topics of Python's library a sentence is of       topic       the same of two others

`sentiment` and `topic` are the targets: rows from which a few are drawn; `sentiment-test` and `topic-test` are their tests. No
class or function of the topics is on both sides. `unlabelled` are texts of both targets without labels, for who aligns by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.opinions import DOMAINS, LABELS, _remark
from luthier.studies._worlds.short_texts import _sentences, dealt

TARGETS = ("sentiment", "topic")
ABOUT: Mapping[str, tuple[str, ...]] = {"sentiment": ("films", "hotels", "tools"), "topic": ("checks files", "concurrency mail",
                                                                                           "web quantities")}
KEPT: Mapping[str, str] = {"sentiment": "meals", "topic": "programs words"}
SOURCES = tuple(f"{target}{n}" for target in TARGETS for n in range(len(ABOUT[target])))


class TwoTracks(Step, name="two-tracks", version=2):
    """Rows of six sources, and two targets with their tests."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    rows: int = Field(200, ge=2, description="rows of each source")
    pool: int = Field(120, ge=4, description="rows of each target from which a few are drawn")
    tests: int = Field(120, ge=2, description="rows of each test")
    texts: int = Field(32, ge=2, description="texts without labels")
    mixed: float = Field(0.3, ge=0, le=1, description="share of reviews with a remark of the other kind")
    seed: int = Field(0, ge=0, description="which rows; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError for a Python with too few docstrings."""
        draw = Rng(self.seed).within("two-tracks")
        there = list(_sentences())
        made: dict[str, list[Example]] = {}
        for n, domain in enumerate(ABOUT["sentiment"]):
            made[f"sentiment{n}"] = self._reviews(f"sentiment{n}", domain, self.rows, draw)
        for name, count in (("sentiment", self.pool), ("sentiment-test", self.tests)):
            made[name] = self._reviews(name, KEPT["sentiment"], count, draw)
        for n, pair in enumerate(ABOUT["topic"]):
            made |= dealt([e for e in there if str(e.label) in pair.split()], {f"topic{n}": self.rows}, draw.within(pair))
        last = [e for e in there if str(e.label) in KEPT["topic"].split()]
        made |= dealt(last, {"topic-test": self.tests, "topic": self.pool}, draw.within(KEPT["topic"]))
        bare = [e for pair in zip(made["sentiment"], made["topic"], strict=True) for e in pair][:self.texts]
        made["unlabelled"] = [Example(f"bare/{e.id}", (Turn("user", (Part("".join(t.text for t in e.turns), name="text"),)),),
                                      task="text") for e in bare]
        return write_examples(ctx.folder, made)

    def _reviews(self, name: str, domain: str, count: int, draw: Rng) -> list[Example]:
        found = []
        for n in range(count):
            rng, good = draw("row", f"{name}/{n}"), n % 2 == 0
            odd = rng.random() < self.mixed
            aspects = [list(DOMAINS[domain])[i] for i in rng.permutation(len(DOMAINS[domain]))[:3]]
            said = [_remark(domain, a, good != (odd and i == 0), rng) for i, a in enumerate(aspects)]
            told = " ".join(f"{said[i][0].upper()}{said[i][1:]}." for i in rng.permutation(len(said)))
            found.append(Example(f"{name}/{n}", (Turn("user", (Part(told),)),), task="classify", cluster=f"{name}/{n}",
                                 label=LABELS[good]))
        return found
