"""worded-reviews: three tasks on reviews that are answered in words, and texts that say nothing of any.

    main    whether a review of films or hotels is good or bad
    alike   whether a review of meals or tools is good or bad
    other   whether a review is about food, cinema, travel or work

Subsets `main`, `alike`, `other` and `both` (main and other in turn) are to be learned; `test` (main), `other-test` and
`strange` (one remark or two of main's domains and nothing else, asked as in main; a row's cluster is what its first remark
says) are for tests. `pretrain` has reviews without a question, and the words of all answers in drawn orders. Rows have
`options` in their `meta` and the number of the right one as label.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Example, Part, Turn, question
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds._names import words
from luthier.studies._worlds.opinions import DOMAINS, LABELS, _remark, review
from luthier.studies._worlds.short_reviews import AWAY, HOME, _sentences

ABOUT: Mapping[str, str] = {"meals": "food", "films": "cinema", "hotels": "travel", "tools": "work"}
ASKED: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {  # what is asked, the answers, and of which domains
    "main": ("Good or bad?", LABELS, HOME), "alike": ("Good or bad?", LABELS, AWAY),
    "other": ("What is it about?", tuple(ABOUT.values()), tuple(DOMAINS))}


class WordedReviews(Step, name="worded-reviews"):
    """Rows of three tasks, tests of two, and texts for a base."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    texts: int = Field(1500, ge=8, description="texts that are only read")
    train: int = Field(400, ge=4, description="rows of each task to learn from")
    tests: int = Field(200, ge=2, description="rows of each test")
    strange: int = Field(144, ge=2, description="short sentences, 144 at most")
    mixed: float = Field(0.3, ge=0, le=1, description="share of reviews with a remark of the other kind")
    seed: int = Field(0, ge=0, description="which rows; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Write texts and rows."""
        draw = Rng(self.seed).within("worded-reviews")
        names, short = words(draw("names"), 60), list(_sentences(HOME))
        made: dict[str, list[Example]] = {task: [self._row(f"{task}/{n}", task, n, names, draw) for n in range(self.train)]
                                          for task in ASKED}
        made["both"] = list(chain(*zip(made["main"], made["other"], strict=True)))
        made["test"] = [self._row(f"test/{n}", "main", n, names, draw) for n in range(self.tests)]
        made["other-test"] = [self._row(f"other-test/{n}", "other", n, names, draw) for n in range(self.tests)]
        made["strange"] = [worded(e.id, "main", "".join(t.text for t in e.turns), str(e.label), e.cluster)
                           for e in (short[i] for i in draw("strange").permutation(len(short))[:self.strange])]
        made["pretrain"] = [self._text(n, names, draw) for n in range(self.texts)]
        return write_examples(ctx.folder, made)

    def _told(self, name: str, domain: str, good: bool, names: list[str], draw: Rng) -> str:
        rng = draw("row", name)
        odd = rng.random() < self.mixed
        aspects = [list(DOMAINS[domain])[i] for i in rng.permutation(len(DOMAINS[domain]))[:3]]
        return review([_remark(domain, a, good != (odd and i == 0), rng) for i, a in enumerate(aspects)], names, rng)

    def _row(self, name: str, task: str, n: int, names: list[str], draw: Rng) -> Example:
        good, domain = n % 2 == 0, ASKED[task][2][n // 2 % len(ASKED[task][2])]
        answer = ABOUT[domain] if task == "other" else LABELS[good]
        return worded(name, task, self._told(name, domain, good, names, draw), answer, name)

    def _text(self, n: int, names: list[str], draw: Rng) -> Example:
        rng, every = draw("text", n), (*LABELS, *ABOUT.values())
        told = f"Words: {', '.join(every[i] for i in rng.permutation(len(every)))}." if n % 8 == 0 else self._told(
            f"pretrain/{n}", list(DOMAINS)[n % len(DOMAINS)], bool(rng.random() < 0.5), names, draw)
        return Example(f"pretrain/{n}", (Turn("user", (Part(told, name="text"),)),), task="text")


def worded(name: str, task: str, text: str, answer: str, cluster: str) -> Example:
    """A row of a task."""
    asked, options, _ = ASKED[task]
    meta: dict[str, Any] = {"options": list(options)}
    return question(name, f"{text} {asked}", answer, cluster=cluster, references=(answer,), label=str(options.index(answer)),
                    meta=meta)
