"""What question writers and their filters share: words, generic vocabulary, closeness of two questions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from luthier.core.example import Example, Passage, question
from luthier.core.rng import Rng

Item = TypeVar("Item")
_WORD = re.compile(r"[^\W_]+(?:[._'-][^\W_]+)*|__\w+__", re.UNICODE)
GAP = "____"  # stands for what a cloze question asks for
# Solved examples (passage, question, answer) that writers are shown.
SHOTS = (
    ("boiling points: Water boils at 100 degrees Celsius at sea level. At higher altitudes the air pressure is lower, so it "
     "boils at a lower temperature: in Denver at about 95 degrees.",
     "At what temperature does water boil in Denver?", "about 95 degrees"),
    ("list.renew(loan, weeks=4): Extends a loan by *weeks* and returns the new date. Raises \"LoanError\" if another member "
     "has reserved the book, or if the loan was renewed twice before.",
     "Which exception does list.renew() raise when a book is reserved by another member?", "LoanError"),
    ("pump control: The pump is switched off by the float valve as soon as the tank holds 180 litres. A red lamp shows that "
     "the filter must be changed.",
     "What switches the pump off when the tank is full?", "the float valve"),
)
# Words that carry no topic: a question or an answer made only of these says nothing about a passage.
STOPWORDS = frozenset("""
a about after all also an and any are as at be because been before being between but by can could did do does doing
each for from get gets give given gives had happen happens has have how if in into is it its made make makes many may
mean means more most must no not of on one only or other our over shall should so some such than that the their them
then there these they this those through to two under up use used uses using was we were what when where whether which
while who whose why will with would you your
""".split())


def words(text: str) -> list[str]:
    """Lower-case words of a text, in order."""
    return [w.lower() for w in _WORD.findall(text)]


_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'*`(])")
# Scripts that write no spaces: kana, Chinese characters and Thai.
_UNSPACED = re.compile(r"([\u0e00-\u0e7f\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


def units(text: str) -> list[str]:
    """Words, and for Japanese, Chinese and Thai letters, in order."""
    return words(_UNSPACED.sub(r" \1 ", text))


def sentences(text: str) -> list[str]:
    """Sentences of a text's prose, white space made one space; fenced code, tables and lists are left out."""
    prose = [b for b in text.split("\n\n") if not b.lstrip().startswith(("```", "|", "- "))]
    return [" ".join(s.split()) for b in prose for s in _SENTENCE.split(b.strip()) if s.strip()]


def content_words(text: str) -> set[str]:
    """The words that carry a topic."""
    return {w for w in words(text) if w not in STOPWORDS}


def jaccard(left: Iterable[str], right: Iterable[str]) -> float:
    """Shared words over all words; 0 when there are none."""
    a, b = set(left), set(right)
    return len(a & b) / len(a | b) if a or b else 0.0


def support(row: Example, text: str | None = None) -> float:
    """Share of the answer's content words (all its words where none carries a topic) in its passage, or in a text."""
    answer = content_words(row.answer) or set(words(row.answer))
    return len(answer & set(words(row.part("passage") if text is None else text))) / len(answer) if answer else 0.0


def spread(items: Sequence[Item], section: Callable[[Item], str], most: int, rng: Rng) -> list[Item]:
    """At most `most` items, one a section in turn; sections in an order drawn by `rng`, items of each in theirs."""
    sections: dict[str, list[Item]] = {}
    for item in items:
        sections.setdefault(section(item), []).append(item)
    names = [list(sections)[i] for i in rng("sections").permutation(len(sections))]
    chosen: list[Item] = []
    while len(chosen) < min(most, len(items)):
        for name in names:
            if sections[name] and len(chosen) < most:
                chosen.append(sections[name].pop(0))
    return chosen


def written(passage: Passage, number: int, generator: str, asked: str, answer: str) -> Example:
    """An example written from a passage: it belongs to the passage's section and names its writer."""
    return question(f"{generator}/{passage.id}/{number}", asked, answer, passage=passage.shown, source=passage.id,
                    cluster=passage.section, references=(answer,),
                    meta={"generator": generator, "gold": [passage.id], "headings": list(passage.headings)})
