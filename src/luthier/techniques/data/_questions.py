"""What question writers and their filters share: words, generic vocabulary, closeness of two questions."""

from __future__ import annotations

import re
from collections.abc import Iterable

from luthier.core.example import Example, Passage, question

_WORD = re.compile(r"[^\W_]+(?:[._'-][^\W_]+)*|__\w+__", re.UNICODE)
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


def content_words(text: str) -> set[str]:
    """The words that carry a topic."""
    return {w for w in words(text) if w not in STOPWORDS}


def jaccard(left: Iterable[str], right: Iterable[str]) -> float:
    """Shared words over all words; 0 when there are none."""
    a, b = set(left), set(right)
    return len(a & b) / len(a | b) if a or b else 0.0


def written(passage: Passage, number: int, generator: str, asked: str, answer: str) -> Example:
    """An example written from a passage: it belongs to the passage's section and names its writer."""
    return question(f"{generator}/{passage.id}/{number}", asked, answer, passage=passage.shown, source=passage.id,
                    cluster=passage.section, references=(answer,),
                    meta={"generator": generator, "gold": [passage.id], "headings": list(passage.headings)})
