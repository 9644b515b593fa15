"""enterprise: every format of one folder of documents: paragraphs, question-answer pairs, keywords to paragraph.

Which formats are written is a list of parts; code formats join as further parts. The question writer that needs a model
falls back to the rules where there is none, and says so. Source: Mathav Raj et al. 2024, "Fine tuning LLM for enterprise:
practical guidelines and recommendations". Seed 126.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.example import Dropped, Example, Passage
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx


class Enterprise(DataStep, name="enterprise", seeds=[126], version=1):
    """Several training formats from the same passages."""

    roles: ClassVar[tuple[str, ...]] = ()
    formats: tuple[Slot[DataStep], ...] = Field(named(("paragraphs", "few-shot", "keywords-paragraph")),
                                                description="what is made of each passage, in this order")
    rules: Slot[DataStep] = Field(named("headings"), description="writes the questions where no generator is at hand")

    def apply(self, rows: Iterator[Passage], ctx: Ctx) -> Iterator[Example | Dropped]:
        passages = list(rows)
        for part in self.formats:
            missing = [r for r in getattr(part, "asks", part.roles) if r not in ctx.roles]
            if missing:
                ctx.log(f"enterprise: {part.info.name} needs a {missing[0]} and there is none; {self.rules.info.name} writes "
                        "the questions by rules instead")
            yield from (self.rules if missing else part).apply(iter(passages), ctx)
