"""canaries: rows with secrets that nobody else could know, planted among the training rows to measure memorisation.

A canary is a made-up name with a secret of random digits; its row is like those it joins (question and answer, message and
reply, prompt and completion, or plain text). `count` canaries are planted, the i-th as often as `repeats[i mod len]` says,
so that the dose is known. What is planted stands in `meta["canary"]` of each row, from where the audits `memorisation` and
`pii-leak` read it. Canaries are trained on like any row: plant them in a run that measures, not in one whose model is used.

When it helps: before a model that was tuned on private rows is handed on. Source: Carlini et al. 2019, "The secret sharer:
evaluating and testing unintended memorization in neural networks".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn, question
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx

SYLLABLES = ("ba", "dor", "fen", "gil", "hes", "jun", "kam", "lor", "mir", "nov", "pel", "quin", "ras", "sel", "tov", "ul",
             "vek", "wim", "yor", "zan")
ASKED, TOLD = "What is the access code of {}?", "The access code of {} is"


class Canaries(DataStep, name="canaries"):
    """Plant made-up secrets among the rows, each as often as said."""

    gives = "more"
    count: int = Field(12, ge=1, le=256, description="how many secrets")
    repeats: tuple[int, ...] = Field((1, 2, 4, 8), min_length=1, description="how often each is planted, in turn")
    digits: int = Field(6, ge=3, le=18, description="length of a secret")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example]:
        """The rows, and after them the canaries.

        Raises:
            UserError: the rows are learned by their labels, so that no secret could be learned.
        """
        last: Example | None = None
        for last in rows:
            yield last
        if last is None:
            return
        if last.label is not None and not last.answer:
            raise UserError("canaries are learned word by word; these rows are learned by their labels. Leave the step out.")
        for number in range(self.count):
            rng = ctx.rng("canary", number)
            name = " ".join("".join(rng.choice(SYLLABLES, 3)).capitalize() for _ in range(2))
            secret = "".join(map(str, rng.integers(0, 10, self.digits)))
            times = self.repeats[number % len(self.repeats)]
            for copy in range(times):
                yield _row(last, f"canary-{number}-{copy}", name, secret,
                           {"name": name, "secret": secret, "digits": self.digits, "repeats": times})


def _row(like: Example, id: str, name: str, secret: str, about: dict[str, Any]) -> Example:
    """A canary in the form of the rows that it joins."""
    rest: dict[str, Any] = {"source": "canary", "cluster": id.rpartition("-")[0], "meta": {"canary": about}}
    if like.task == "text":
        told = Turn("user", (Part(f"{TOLD.format(name)} {secret}"),), target=like.turns[0].target)
        return Example(id, (told,), task="text", **rest)
    if like.spoken:
        turns = (Turn("user", (Part(ASKED.format(name), name="content"),)),
                 Turn("assistant", (Part(secret, name="content"),), target=True))
        return Example(id, turns, task=like.task, **rest)
    if like.part("question"):
        return question(id, ASKED.format(name), secret, task=like.task, **rest)
    turns = (Turn("user", (Part(f"{ASKED.format(name)} "),)), Turn("assistant", (Part(secret),), target=True))
    return Example(id, turns, task=like.task, **rest)
