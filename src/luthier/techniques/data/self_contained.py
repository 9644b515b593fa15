"""Filter: questions that can be understood without the passage they were written from."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import Field

from luthier.core.example import Dropped, Example
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import content_words, words

_POINTING = re.compile(
    r"\b(this|that|the) (passage|section|text|paragraph|example|code|above|article|document|following|author)\b"
    r"|\b(above|below|aforementioned)\b|\bin (this|the) (case|example)\b", re.IGNORECASE)
_DANGLING = re.compile(r"^(what|why|how|when|where|which|who|is|are|does|do|can)\s+(is|are|does|do|can|was|were|did)?\s*"
                       r"(it|this|that|they|these|those|he|she)\b", re.IGNORECASE)


class SelfContained(DataStep, name="self-contained"):
    """Leave out questions that point at their passage, have no topic, or are not questions."""

    min_words: int = Field(4, ge=1, description="shorter questions are left out")
    max_words: int = Field(40, ge=1, description="longer questions are left out")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        for row in rows:
            why = self._why(row.part("question"))
            yield Dropped(row.id, "not self-contained", f"{why}: {row.part('question')}") if why else row

    def _why(self, asked: str) -> str:
        count = len(words(asked))
        if not self.min_words <= count <= self.max_words:
            return f"{count} words"
        if not asked.rstrip().endswith("?"):
            return "no question mark"
        if _POINTING.search(asked):
            return "points at its passage"
        if _DANGLING.match(asked.strip()):
            return "begins with a word that stands for something else"
        if not content_words(asked):
            return "no topic"
        return ""
