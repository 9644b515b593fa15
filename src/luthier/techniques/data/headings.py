"""Questions from headings and definitions, without any model.

A sentence that defines a term ("A *module* is a file that…") becomes "What is a module?"; a named entry whose heading
is a call becomes "What does f(x) do?", another heading "What is said about …?", answered by the section's first sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import Field

from luthier.core.example import Dropped, Example, Passage
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import STOPWORDS, words, written

_SENTENCE = re.compile(r"(?<=[.!?:])\s+(?=[A-Z\"'*`(])")
_DEFINITION = re.compile(
    r"^(?P<article>An?|The)\s+(?P<term>[^\s,;:()][^,;:()]{1,40}?)\s+(?P<verb>is|are)\s+"
    r"(?P<body>(?:an?|the|any|one|some|used|evaluated|executed|created|called|defined)\b.{8,240}?)[.:]?$", re.DOTALL)
_MARKS = re.compile(r"[*`\"]+")
_CALLABLE = re.compile(r"^[\w.]+\(.*\)$")
# A term with one of these is the middle of a longer sentence, not a thing that is defined.
_LOOSE = STOPWORDS | {"following", "order", "case", "result", "value", "first", "second", "same", "above"}
MAX_TERM_WORDS, MAX_TOPIC_WORDS = 4, 10


class Headings(DataStep, name="headings"):
    """Questions from definitions and headings; needs no model."""

    max_answer_words: int = Field(20, ge=1, description="longer answers are left out")

    def apply(self, rows: Iterator[Passage], ctx: Ctx) -> Iterator[Example | Dropped]:
        asked: set[str] = set()
        opened: set[str] = set()
        for passage in rows:
            number = 0
            for asking, answer in self._pairs(passage, passage.section not in opened):
                opened.add(passage.section)
                if asking in asked:
                    continue
                asked.add(asking)
                yield written(passage, number, self.info.name, asking, answer)
                number += 1

    def _pairs(self, passage: Passage, opens: bool) -> Iterator[tuple[str, str]]:
        prose = [block for block in passage.text.split("\n\n") if not block.lstrip().startswith(("```", "|", "- "))]
        sentences = [" ".join(s.split()) for block in prose for s in _SENTENCE.split(block.strip()) if s.strip()]
        for sentence in sentences:
            match = _DEFINITION.match(sentence)
            if match and self._is_term(match["term"]) and len(match["body"].split()) <= self.max_answer_words:
                article = "" if match["article"] == "The" and match["verb"] == "are" else match["article"].lower() + " "
                yield f"What {match['verb']} {article}{_plain(match['term'])}?", _plain(match["body"])
        topic = _plain(passage.headings[-1]) if passage.headings else ""
        answer = self._first_said(sentences) if opens and topic and len(words(topic)) <= MAX_TOPIC_WORDS else ""
        if answer:
            yield (f"What does {topic} do?" if _CALLABLE.match(topic) else f"What is said about {topic}?"), answer

    def _first_said(self, sentences: list[str]) -> str:
        """The first sentence that is short enough, else the first clause that is."""
        clauses = [c for s in sentences for c in re.split(r"[;,]\s", s)]
        fitting = [_plain(s).rstrip(".:") for s in (*sentences, *clauses)]
        return next((s for s in fitting if 3 <= len(s.split()) <= self.max_answer_words), "")

    def _is_term(self, term: str) -> bool:
        found = words(term)
        return 0 < len(found) <= MAX_TERM_WORDS and not set(found) & _LOOSE


def _plain(text: str) -> str:
    return _MARKS.sub("", text).strip()
