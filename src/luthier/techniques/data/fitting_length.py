"""Filter: questions and answers of a sensible length; letters of scripts without spaces count as words."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from luthier.core.example import Dropped, Example
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import units


class FittingLength(DataStep, name="fitting-length", version=1):
    """Leave out rows whose question or answer is empty or too long."""

    max_question_words: int = Field(60, ge=1, description="longer questions are left out")
    max_answer_words: int = Field(60, ge=1, description="longer answers are left out")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        for row in rows:
            asked, said = len(units(row.part("question"))), len(units(row.answer))
            if not asked or not said:
                yield Dropped(row.id, "empty", f"{asked} words asked, {said} answered")
            elif asked > self.max_question_words or said > self.max_answer_words:
                yield Dropped(row.id, "too long", f"{asked} words asked, {said} answered")
            else:
                yield row
