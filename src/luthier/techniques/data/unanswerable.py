"""unanswerable: questions that the documents do not answer, made by rule from questions that they do.

Two ways. *Swapped*: the rarest word that names something in a question (one that the documents know) is replaced by a
made-up name that occurs nowhere in the documents: "What does str.center() do?" becomes "What does str.vorbale() do?".
*Hidden*: the question stays as it is and its section is not searched for it (`meta["hidden"]`), if no other passage
holds the answer; made only where there are too few questions to swap, since a model may know the answer without any
passage.

When it helps: abstention is measured without anyone writing questions. They are easier to see through than questions
that people write to mislead, so a share of abstentions on them is an upper bound. Source: Rajpurkar et al. 2018, "Know
what you don't know: unanswerable questions for SQuAD" (entity swap); Sharma et al. 2024 (no-gold rows). Needs the role
`passages`: a callable that gives all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Example, Passage
from luthier.core.kinds import DataStep
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.techniques.data._questions import STOPWORDS, words

# A name is a run of letters and digits; of `str.center` only `center` is swapped.
_NAME = re.compile(r"[^\W_]+")
_ONSETS, _VOWELS = "b d f g l m n p r s t v z br dr gr pl st tr".split(), "a e i o u".split()
LEAST_LETTERS = 3
TELLING_WORDS = 2


class Unanswerable(DataStep, name="unanswerable", seeds=[1]):
    """Questions about made-up names, and questions whose section is hidden."""

    roles: ClassVar[tuple[str, ...]] = ("passages",)
    gives: ClassVar[Literal["same", "more", "other"]] = "other"
    rows: int = Field(40, ge=1, description="how many questions are made, where there are enough to make them from")
    ways: tuple[Literal["swapped", "hidden"], ...] = Field(("swapped", "hidden"), min_length=1,
                                                           description="how they are made; a later way fills up an earlier")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example]:
        """Made from the answerable questions among `rows`, drawn by `ctx.rng`. Raises UserError without the documents."""
        if "passages" not in ctx.roles:
            raise UserError("unanswerable needs the documents: give its step the input {documents: documents}.")
        asked = [row for row in rows if row.part("question") and (row.answer or row.references)]
        asked = [asked[i] for i in ctx.rng("unanswerable").permutation(len(asked))]
        counts = Counter(word for p in ctx.roles["passages"]() for word in set(_names(p.shown)))
        left = self.rows
        for way in self.ways:
            made = self._swapped(asked, counts, ctx.rng) if way == "swapped" else _hidden(asked, ctx.roles["passages"]())
            for row in made:
                if not left:
                    return
                left -= 1
                yield row

    def _swapped(self, asked: Iterable[Example], counts: Counter[str], rng: Rng) -> Iterator[Example]:
        seen: set[str] = set()
        for row in asked:
            question = row.part("question")
            known = [w for w in dict.fromkeys(_names(question)) if w not in STOPWORDS and len(w) >= LEAST_LETTERS and counts[w]]
            if not known:
                continue
            old = min(known, key=lambda w: (counts[w], -question.lower().index(w)))
            new = _made_up(counts, rng, row.id)
            text = re.sub(rf"(?<![^\W_]){re.escape(old)}(?![^\W_])", lambda m, n=new: _cased(m[0], n), question,  # type: ignore[misc]
                          flags=re.IGNORECASE)
            if text not in seen:
                seen.add(text)
                yield _without_answer(row, f"swapped/{row.id}", text, made="swapped", swapped=[old, new])


def _hidden(asked: Iterable[Example], passages: Iterable[Passage]) -> Iterator[Example]:
    texts = [(p.section, f" {' '.join(words(p.shown))} ") for p in passages]
    for row in asked:
        answers = [words(a) for a in dict.fromkeys((row.answer, *row.references)) if a]
        if min(map(len, answers)) < TELLING_WORDS:
            continue  # "None" or "True" stands in many passages
        if not any(section != row.cluster and f" {' '.join(a)} " in text for section, text in texts for a in answers):
            yield _without_answer(row, f"hidden/{row.id}", row.part("question"), made="hidden", hidden=[row.cluster])


def _without_answer(row: Example, name: str, text: str, **meta: object) -> Example:
    turn = row.turns[0]
    parts = tuple(replace(p, value=text) if p.name == "question" else p for p in turn.parts if p.name != "passage")
    return replace(row, id=name, turns=(replace(turn, parts=parts),), references=(), meta={"gold": [], "of": row.id, **meta})


def _names(text: str) -> list[str]:
    return [w.lower() for w in _NAME.findall(text)]


def _made_up(counts: Counter[str], rng: Rng, name: str) -> str:
    """A word of three syllables that occurs nowhere in the documents; a function of the seed and the question."""
    draw = rng("name", name)
    while True:
        word = "".join(_ONSETS[draw.integers(len(_ONSETS))] + _VOWELS[draw.integers(len(_VOWELS))] for _ in range(3))
        if word not in counts:
            return word


def _cased(old: str, new: str) -> str:
    return new.upper() if old.isupper() and len(old) > 1 else new.capitalize() if old[:1].isupper() else new
