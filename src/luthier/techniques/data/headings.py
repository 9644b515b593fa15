"""Questions from headings and definitions, without any model.

A sentence that defines a term ("A *module* is a file that…") becomes "What is a module?"; a named entry whose heading
is a term becomes "What does the documentation say about …?", answered by the section's first sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import Field

from luthier.core.example import Dropped, Example, Passage
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import STOPWORDS, words, written

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'*`(])")
_DEFINITION = re.compile(
    r"^(?P<article>An?|The)\s+(?P<term>[*\"`'_]*[A-Za-z_][\w*\"`' -]{1,40}?[*\"`'_]*)\s+(?P<verb>is|are)\s+"
    r"(?P<body>(?:an?|the|any|one|some|used|evaluated|executed|created|called|defined)\b.{15,240}?)\.?$", re.DOTALL)
_MARKS = re.compile(r"[*`\"_]+(?=\w)|(?<=\w)[*`\"]+")


class Headings(DataStep, name="headings"):
    """Questions from definitions and headings; needs no model."""

    max_answer_words: int = Field(30, ge=1, description="longer definitions are left out")

    def apply(self, rows: Iterator[Passage], ctx: Ctx) -> Iterator[Example | Dropped]:
        asked: set[str] = set()
        opened: set[str] = set()
        for passage in rows:
            number = 0
            for asking, answer in self._pairs(passage, passage.section not in opened):
                if asking in asked:
                    continue
                asked.add(asking)
                yield written(passage, number, self.info.name, asking, answer)
                number += 1
            opened.add(passage.section)

    def _pairs(self, passage: Passage, opens: bool) -> Iterator[tuple[str, str]]:
        prose = [block for block in passage.text.split("\n\n") if not block.lstrip().startswith(("```", "|", "- "))]
        sentences = [" ".join(s.split()) for block in prose for s in _SENTENCE.split(block.strip()) if s.strip()]
        for sentence in sentences:
            match = _DEFINITION.match(sentence)
            if match:
                term = _MARKS.sub("", match["term"]).strip()
                answer = _MARKS.sub("", match["body"]).strip()
                if term.lower() not in STOPWORDS and len(answer.split()) <= self.max_answer_words:
                    article = "" if match["article"] == "The" and match["verb"] == "are" else match["article"].lower() + " "
                    yield f"What {match['verb']} {article}{term}?", answer
        topic = _MARKS.sub("", passage.headings[-1]).strip() if passage.headings else ""
        if opens and sentences and topic and len(words(topic)) <= 8:
            answer = _MARKS.sub("", sentences[0])
            if 4 <= len(answer.split()) <= self.max_answer_words:
                yield f"What does the documentation first say about \"{topic}\"?", answer
