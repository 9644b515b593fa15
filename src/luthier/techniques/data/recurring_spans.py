"""recurring-spans: a span that recurs in another passage becomes question and answer.

The sentence around one occurrence, the span replaced by a gap, is the question; the passage of another occurrence is
shown, and the span is the answer. Spans are runs of `min_words` to `max_words` words within a sentence that begin and end
with a word that carries a topic; the longest win, and what overlaps a longer one is left. Source: Ram et al. 2021,
"Few-shot question answering by pretraining span selection". Seed 14.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import Field

from luthier.core.example import Dropped, Example, Passage
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import GAP, STOPWORDS, sentences, written

_TOKEN = re.compile(r"[^\W_]+(?:[._'-][^\W_]+)*")
# Where a span stands: number of its passage, its sentence, its place in the sentence.
_Place = tuple[int, str, int, int]


class RecurringSpans(DataStep, name="recurring-spans", version=1):
    """A span of one passage is asked for by the sentence around it in another."""

    min_words: int = Field(2, ge=1, description="shortest span")
    max_words: int = Field(6, ge=1, description="longest span")
    max_passages: int = Field(20, ge=2, description="a span of more passages is a phrase of the language")
    per_passage: int = Field(2, ge=1, description="most questions about one passage")

    def apply(self, rows: Iterator[Passage], ctx: Ctx) -> Iterator[Example | Dropped]:
        passages = list(rows)
        places: dict[tuple[str, ...], list[_Place]] = {}
        for number, passage in enumerate(passages):
            for sentence in sentences(passage.text):
                for span, begin, end in self._spans(sentence):
                    places.setdefault(span, []).append((number, sentence, begin, end))
        made = [0] * len(passages)
        used: set[tuple[int, str]] = set()
        for _span, found in sorted(places.items(), key=lambda item: (-len(item[0]), item[1][0][0], item[1][0][2])):
            if not 2 <= len({number for number, *_ in found}) <= self.max_passages:
                continue
            asked, sentence, begin, end = found[0]
            shown, other, first, last = next(place for place in found if place[0] != asked)
            if (asked, sentence) in used or made[shown] >= self.per_passage:
                continue
            used.add((asked, sentence))
            question = f'What fills the gap: "{sentence[:begin]}{GAP}{sentence[end:]}"?'
            yield written(passages[shown], made[shown], self.info.name, question, other[first:last])
            made[shown] += 1

    def _spans(self, sentence: str) -> Iterator[tuple[tuple[str, ...], int, int]]:
        tokens = [(m[0].lower(), m.start(), m.end()) for m in _TOKEN.finditer(sentence)]
        for i, (first, begin, _) in enumerate(tokens):
            for size in range(self.min_words, self.max_words + 1):
                if i + size > len(tokens):
                    break
                last, _, end = tokens[i + size - 1]
                if first not in STOPWORDS and last not in STOPWORDS and size < len(tokens):
                    yield tuple(word for word, _, _ in tokens[i:i + size]), begin, end
