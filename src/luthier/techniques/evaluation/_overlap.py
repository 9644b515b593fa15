"""Overlap of an answer's words with a text's, as multisets of normalised words (`_shared.bag`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from luthier.core.example import Example
from luthier.techniques.evaluation._shared import bag


def precision(said: str, text: str) -> float:
    """|said ∩ text| / |said|; 0 where nothing is said."""
    left, right = Counter(bag(said)), Counter(bag(text))
    return (left & right).total() / left.total() if left else 0.0


def recall(said: str, text: str) -> float:
    """|said ∩ text| / |text|; 1 where the text has no words: nothing was left out."""
    return precision(text, said) if bag(text) else 1.0


def without(said: str, others: Iterable[str]) -> str:
    """The words of an answer that none of the other texts holds, however often they are said."""
    known = {word for text in others for word in bag(text)}
    return " ".join(word for word in bag(said) if word not in known)


def heard(example: Example) -> list[str]:
    """What was asked: the question and the turns before it, without passages."""
    return [p.value for t in example.turns if not t.target for p in t.parts if p.type == "text" and p.name != "passage"]
