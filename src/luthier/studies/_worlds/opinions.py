"""opinions: short reviews of meals, films, hotels and tools, each about one aspect of its domain or about several.

A text has three remarks and some words of no opinion between them, with an invented name. Its sentiment is that of most of
its remarks: a `mixed` text has one of the other kind, and is harder. Shares of mixed texts by domain make domains unequally
hard. `source` is the domain, `label` the sentiment; subsets are "all" and, where rows are kept out, "test".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds._names import words

Remarks = tuple[tuple[str, ...], tuple[str, ...]]  # good ones, bad ones
DOMAINS: Mapping[str, Mapping[str, Remarks]] = {
    "meals": {
        "price": (("the bill was smaller than I feared", "a plate costs next to nothing", "twice the food for half the money"),
                  ("the bill made me gasp", "a small plate costs a fortune", "half the food for twice the money")),
        "waiters": (("the waiter remembered our names", "the cook came to ask how we were", "they brought a cushion unasked"),
                    ("the waiter rolled his eyes", "nobody came when we waved", "the cook shouted at a guest")),
        "taste": (("the soup was rich and warm", "the bread came fresh from the oven", "every bite was a joy"),
                  ("the soup was thin and cold", "the bread was hard as stone", "every bite tasted of salt")),
        "room": (("the tables stand far apart", "there was soft music all evening", "the windows open on the harbour"),
                 ("the tables touch each other", "there was a cold draught all evening", "the windows face a wall"))},
    "films": {
        "plot": (("the story keeps its secret to the end", "every scene leads to the next", "the ending made me smile"),
                 ("the story falls apart after an hour", "no scene leads anywhere", "the ending made me groan")),
        "acting": (("the lead says it all with a glance", "even the smallest role is played with care",
                    "you forget that they are acting"),
                   ("the lead recites like a timetable", "even the main role is played without care",
                    "you never forget that they are acting")),
        "sound": (("the score lifts every scene", "the songs stay with you", "each whisper is clear"),
                  ("the score drowns every scene", "the songs hurt the ears", "each whisper is lost")),
        "pictures": (("the camera glides like a bird", "the colours glow", "the night scenes are a marvel"),
                     ("the camera shakes until you are ill", "the colours look washed out", "the night scenes are black"))},
    "hotels": {
        "bed": (("I slept like a child", "the mattress is firm and fresh", "the pillows are soft as clouds"),
                ("I lay awake all night", "the mattress sags and smells", "the pillows are flat as paper")),
        "noise": (("there was not a sound after ten", "the walls swallow every noise", "only birds woke us"),
                  ("there were lorries all night", "the walls carry every cough", "a drill woke us")),
        "bath": (("hot water came at once", "the shower is strong", "there were clean towels every day"),
                 ("hot water took an hour", "the shower drips", "there were the same towels all week")),
        "desk": (("the desk found us a better room", "they carried our bags up", "a taxi was called in a minute"),
                 ("the desk lost our booking", "they watched us carry the bags up", "no taxi came in an hour"))},
    "tools": {
        "strength": (("it went through oak without a stop", "the motor never gets hot", "after a year it pulls like new"),
                     ("it stalled in soft pine", "the motor smoked at once", "after a week it hardly turned")),
        "grip": (("the handle fits the hand", "it is light enough for a long day", "no blister after hours of work"),
                 ("the handle slips", "it is too heavy to hold for long", "blisters after minutes of work")),
        "battery": (("one charge lasts two days", "it is full in an hour", "it holds in the frost"),
                    ("one charge lasts ten minutes", "it takes all night to fill", "it dies in the frost")),
        "manual": (("the manual is clear", "every screw has its label", "it was set up in five minutes"),
                   ("the manual is a riddle", "no screw has a label", "it took all day to set up"))},
}
LABELS = ("bad", "good")
ASIDES = ("{n} and I were there in {m}.", "My friend {n} had told me of it.", "That was in {m}.", "{n} paid for it.",
          "I wrote this for {n} in {m}.", "We took {n} along.", "It was {n} who chose it.", "It rained in {m}.")
MONTHS = ("January", "March", "May", "July", "September", "November")


class Opinions(Step, name="opinions"):
    """Reviews of four domains with their sentiment."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    rows: int = Field(300, ge=4, description="reviews of each domain, half of them good")
    test_rows: int = Field(0, ge=0, description="further reviews of each domain, kept out: the subset test")
    mixed: tuple[float, ...] = Field((0.0, 0.3, 0.6, 0.9), description="share of mixed reviews of each domain: "
                                                                       "meals, films, hotels, tools")
    seed: int = Field(0, ge=0, description="which reviews; a study's training seeds leave them as they are")

    def check(self) -> None:
        """Raises UserError for another number of domains, or a share that is none."""
        if len(self.mixed) != len(DOMAINS) or not all(0 <= share <= 1 for share in self.mixed):
            raise UserError(f"opinions.mixed is {self.mixed}: one share from 0 to 1 for each of {', '.join(DOMAINS)}.")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Write as many reviews of each domain."""
        draw = Rng(self.seed).within("opinions")
        names = words(draw("names"), 60)
        made: dict[str, list[Example]] = {"all": [], "test": []}
        for domain, share in zip(DOMAINS, self.mixed, strict=True):
            for n in range(self.rows + self.test_rows):
                rng = draw(domain, n)
                odd = rng.random() < share
                aspects = [list(DOMAINS[domain])[i] for i in rng.permutation(len(DOMAINS[domain]))[:3]]
                said = [_remark(domain, aspect, (n % 2 == 0) != (odd and i == 0), rng) for i, aspect in enumerate(aspects)]
                made["all" if n < self.rows else "test"].append(
                    Example(f"{domain}/{n}", (Turn("user", (Part(review(said, names, rng)),)),), task="classify",
                            source=domain, cluster=f"{domain}/{n}", label=LABELS[n % 2 == 0]))
        return write_examples(ctx.folder, {name: rows for name, rows in made.items() if rows}, labels=sorted(LABELS))


def review(remarks: Sequence[str], names: Sequence[str], rng: np.random.Generator) -> str:
    """Remarks in a drawn order, and asides before and after them."""
    first, last = (ASIDES[i].format(n=names[int(rng.integers(len(names)))], m=MONTHS[rng.integers(len(MONTHS))])
                   for i in rng.permutation(len(ASIDES))[:2])
    ordered = [remarks[i] for i in rng.permutation(len(remarks))]
    return " ".join([first, *(f"{r[0].upper()}{r[1:]}." for r in ordered), last])


def _remark(domain: str, aspect: str, good: bool, rng: np.random.Generator) -> str:
    told = DOMAINS[domain][aspect][0 if good else 1]
    return told[rng.integers(len(told))]
