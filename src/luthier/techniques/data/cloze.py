"""cloze: sentences with a gap, answered by what stood there; needs no model.

The gap is a number with its unit word, a quoted or capitalised name within the sentence, or else its rarest word (largest
inverse document frequency). Every answer stands word for word in its passage. Source: Hermann et al. 2015, "Teaching
machines to read and comprehend"; Lewis et al. 2019, "Unsupervised question answering by cloze translation". Seed 14.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from pydantic import Field

from luthier.core.example import Dropped, Example, Passage
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import GAP, STOPWORDS, sentences, words, written

_SPANS = (re.compile(r"(?<![\w.])\d[\d.,]*(?:\s+[a-z]+)?\b"), re.compile(r"(?<=[\"'`])[^\"'`]{2,40}(?=[\"'`])"),
          re.compile(r"(?<=[a-z,] )[A-Z][\w.-]*(?: [A-Z][\w.-]*)*"))


class Cloze(DataStep, name="cloze", version=1):
    """A gap in a sentence is asked for."""

    per_passage: int = Field(2, ge=1, description="most questions from one passage")
    min_words: int = Field(6, ge=3, description="shorter sentences are not asked about")
    max_words: int = Field(32, ge=4, description="longer sentences are not asked about")

    def apply(self, rows: Iterator[Passage], ctx: Ctx) -> Iterator[Example | Dropped]:
        passages = list(rows)
        seen = Counter(word for p in passages for word in set(words(p.text)))
        for passage in passages:
            number = 0
            for sentence in sentences(passage.text):
                span = self._span(sentence, seen) if self.min_words <= len(sentence.split()) <= self.max_words else ""
                if span and number < self.per_passage:
                    asked = f'What fills the gap: "{sentence.replace(span, GAP, 1)}"?'
                    yield written(passage, number, self.info.name, asked, span)
                    number += 1

    def _span(self, sentence: str, seen: Counter[str]) -> str:
        found = next((m[0].rstrip(".,") for p in _SPANS for m in p.finditer(sentence)), "")
        if found:
            return found
        rare = sorted((w for w in re.findall(r"[^\W\d_]{4,}", sentence) if w.lower() not in STOPWORDS),
                      key=lambda w: seen[w.lower()])
        return rare[0] if rare else ""
