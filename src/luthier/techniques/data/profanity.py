"""profanity: leaves out rows with coarse words, counted by class.

A short list of English words in two classes, `mild` and `strong`, with their usual endings and with the letters that
stand in for others (`sh1t`, `f*ck`); whole words only, so that Scunthorpe stays. Words that hurt some people and not
others depend on place and use: they belong in `further`, whose words are a class of their own and always count.

When it helps: forum posts and chats as training data; a model repeats the tone it was shown. The ledger names classes
and counts, never the words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Literal

from pydantic import Field

from luthier.core.example import Dropped, Example, Passage
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._curation import texts

CLASSES: dict[str, str] = {
    "mild": "arse bloody bollocks bugger crap crappy damn damned dammit goddamn piss pissed",
    "strong": "arsehole asshole bastard bitch bullshit cock cunt dick dickhead fuck fucked fucker fucking motherfucker "
              "prick shit shitty slut twat wanker whore",
}
_ENDINGS = "(?:s|es|ed|er|ers|ing|in)?"
_STAND_INS = {"a": "a@4", "e": "e3", "i": "i1!", "o": "o0", "s": "s$5", "u": "uv"}
_VOWELS = "aeiou"


class Profanity(DataStep, name="profanity"):
    """Leave out rows with more coarse words than allowed."""

    level: Literal["mild", "strong"] = Field("strong", description="the mildest class of words that counts")
    most: int = Field(0, ge=0, description="a row may have this many of them")
    further: tuple[str, ...] = Field((), description="more words that count, in any language")

    def apply(self, rows: Iterator[Example | Passage], ctx: Ctx) -> Iterator[Example | Passage | Dropped]:
        """Each row, or `Dropped` with the number of words found by class."""
        for row in rows:
            found = self.count("\n".join(texts(row)))
            if found.total() > self.most:
                yield Dropped(row.id, "profanity", ", ".join(f"{n} {name}" for name, n in sorted(found.items())))
            else:
                yield row

    def count(self, text: str) -> Counter[str]:
        """Coarse words by class: those of `level` and above, and `further`."""
        names = ("mild", "strong") if self.level == "mild" else ("strong",)
        patterns = {name: _pattern(tuple(CLASSES[name].split())) for name in names}
        if self.further:
            patterns["further"] = _pattern(self.further)
        folded = text.casefold()
        counts = Counter({name: len(pattern.findall(folded)) for name, pattern in patterns.items()})
        return +counts


@cache
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the words, as whole words. A star may stand for any letter but the first."""
    spelt = "|".join("".join(_letter(c, at) for at, c in enumerate(w.casefold())) for w in sorted(words, key=len)[::-1])
    return re.compile(rf"(?<![\w@$*])(?:{spelt}){_ENDINGS}(?![\w@$*])")


def _letter(letter: str, at: int) -> str:
    others = _STAND_INS.get(letter, letter) + ("*" if at else "")
    return f"[{re.escape(others)}]" if len(others) > 1 else re.escape(letter)
