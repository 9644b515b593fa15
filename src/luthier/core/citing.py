"""What an answer says beside itself: that nothing was found, and which of the numbered passages it rests on.

Passages that a model is shown are numbered from 1, and an answer that rests on one ends with its number::

    Passage: [1] Glue: Hide glue is kept warm.
    Passage: [2] Pegs: A peg is turned from ebony.
    Question: What is a peg turned from?
    Answer: ebony [2]

Training rows, prompts, metrics and `luthier ask` write and read both through this file alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ABSTENTION = "not found in the documents"

_MARKS = re.compile(r"(?:^|\s)((?:\[\d{1,3}(?:, ?\d{1,3})*\])+)\s*$")
_NUMBER = re.compile(r"\d+")
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n{2,}")
# Scripts written without spaces count one word a character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def numbered(passages: Sequence[str]) -> list[str]:
    """Passages as they stand in a prompt: each begins with its number."""
    return [f"[{number}] {text}" for number, text in enumerate(passages, 1)]


def cite(answer: str, number: int) -> str:
    """An answer that names the passage it rests on."""
    return f"{answer} [{number}]"


def parse(text: str) -> tuple[str, tuple[int, ...]]:
    """The answer without the citations it ends with, and their numbers: the inverse of `cite`, for any answer.

    Several may stand together: `ebony [1][2]`, `ebony [1, 2]`. What stands in brackets anywhere else is part of the answer.
    """
    match = _MARKS.search(text)
    if match is None:
        return text, ()
    return text[:match.start()].rstrip(), tuple(dict.fromkeys(map(int, _NUMBER.findall(match[1]))))


def supporting(text: str, answer: str) -> str:
    """The sentence of a text that has the largest share of the answer's different words; the first of equals.

    Of two sentences that hold equally many the shorter one says it more closely. Empty when none holds any.
    """
    wanted = set(words(answer))
    best, found = (0, 0), ""
    for sentence in filter(None, map(str.strip, _SENTENCE.split(text))):
        said = set(words(sentence))
        worth = (len(wanted & said), -len(said))
        if worth[0] and worth > best:
            best, found = worth, " ".join(sentence.split())
    return found


def words(text: str) -> list[str]:
    """Lower-case words of a text in order; runs of letters and digits, whatever stands between them."""
    return _WORD.findall(text.lower())
