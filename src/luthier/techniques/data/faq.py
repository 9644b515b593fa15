"""faq: the questions that the documents ask themselves, with the answers that they give.

A heading that ends with a question mark is a question, and the section below it its answer: in a page marked as FAQ, where
`read-html` makes a heading of each question, and in any other document written so. Questions and answers are their authors'.
An answer is cut at a sentence's end so that it has at most `max_answer_words`; one whose first sentence is longer is left out.

When it helps: help centres, manuals with a chapter of questions. The index holds such a question as a heading of its passage,
so a test about these alone would be too easy for retrieval: let `known` and `unseen` questions come from another author.
Source: Dinzinger et al. 2025, WebFAQ (arXiv 2502.20936).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import Field

from luthier.core.example import Dropped, Example, Passage
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import written

_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
_MARKS = ("?", "？", "؟")


class Faq(DataStep, name="faq"):
    """Questions that are headings, answered by what stands below them; needs no model."""

    max_answer_words: int = Field(80, ge=1, description="a longer answer is cut at a sentence's end")

    def apply(self, rows: Iterator[Passage], ctx: Ctx) -> Iterator[Example | Dropped]:
        """One example a section whose heading asks, from the section's first passage; each question once."""
        asked: set[str] = set()
        opened: set[str] = set()
        for passage in rows:
            question = " ".join(passage.headings[-1].split()) if passage.headings else ""
            if not question.endswith(_MARKS) or passage.section in opened:
                continue
            opened.add(passage.section)
            if question.casefold() in asked or passage.text.strip() == passage.headings[-1].strip():
                continue  # a question with nothing below it is its own text
            asked.add(question.casefold())
            answer = self._cut(passage.text)
            if answer:
                yield written(passage, 0, self.info.name, question, answer)
            else:
                yield Dropped(f"{self.info.name}/{passage.id}/0", "answer too long",
                              f"its first sentence has more than {self.max_answer_words} words")

    def _cut(self, text: str) -> str:
        """The first sentences, as many as fit."""
        kept: list[str] = []
        for sentence in filter(None, _SENTENCE.split(" ".join(text.split()))):
            if len(" ".join([*kept, sentence]).split()) > self.max_answer_words:
                break
            kept.append(sentence)
        return " ".join(kept)
