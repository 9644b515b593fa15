"""Questions by prompting a local model with a few solved examples.

The writer sees three passages with a question and a short answer each, then a new passage, and continues. What it
writes is parsed strictly; anything else is dropped with the reason. Finished batches are journalled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Passage
from luthier.core.kinds import DataStep, Decoder
from luthier.core.step import Ctx
from luthier.techniques.data._questions import written

SHOTS = (
    ("boiling points: Water boils at 100 degrees Celsius at sea level. At higher altitudes the air pressure is lower, so it "
     "boils at a lower temperature: in Denver at about 95 degrees.",
     "At what temperature does water boil in Denver?", "about 95 degrees"),
    ("list.renew(loan, weeks=4): Extends a loan by *weeks* and returns the new date. Raises \"LoanError\" if another member "
     "has reserved the book, or if the loan was renewed twice before.",
     "Which exception does list.renew() raise when a book is reserved by another member?", "LoanError"),
    ("pump control: The pump is switched off by the float valve as soon as the tank holds 180 litres. A red lamp shows that "
     "the filter must be changed.",
     "What switches the pump off when the tank is full?", "the float valve"),
)
_WRITTEN = re.compile(r"\A\s*(?P<question>[^\n]{8,300}\?)\s*\nAnswer:[^\S\n]*(?P<answer>\S[^\n]{0,299})(?:\n|\Z)")


class FewShot(DataStep, name="few-shot"):
    """Questions written by a language model that is shown three examples."""

    roles: ClassVar[tuple[str, ...]] = ("writer",)
    passages: int = Field(128, ge=1, description="how many passages are asked about; spread over all sections")
    min_words: int = Field(25, ge=1, description="shorter passages are not asked about")
    decoder: Slot[Decoder] = Field(named("greedy:max_new_tokens=48"), description="how the writer writes")

    def apply(self, rows: Iterator[Passage], ctx: Ctx) -> Iterator[Example | Dropped]:
        from luthier.engine.rendering import Render

        if "writer" not in ctx.roles:
            raise UserError("few-shot needs a writer: inputs: {writer: base}.")
        writer = ctx.roles["writer"]
        render = Render(writer.tokenizer, writer.architecture, writer.limit)
        chosen = self._spread([p for p in rows if len(p.text.split()) >= self.min_words], ctx)
        prompts = [render._start() + render.encode(_prompt(p)) for p in chosen]
        made = ctx.engine.generate(writer, prompts, self.decoder, rng=ctx.rng.within("few-shot"), stop="two lines",
                                   journal=ctx.journal, progress=ctx.progress)
        for passage, result in zip(chosen, made, strict=True):
            match = _WRITTEN.match(result.text)
            if match is None:
                yield Dropped(f"{self.info.name}/{passage.id}", "not a question and an answer", result.text[:200])
            else:
                yield written(passage, 0, self.info.name, match["question"].strip(), match["answer"].strip())

    def _spread(self, passages: Sequence[Passage], ctx: Ctx) -> list[Passage]:
        """One passage a section in turn, sections in random order, until there are enough."""
        sections: dict[str, list[Passage]] = {}
        for passage in passages:
            sections.setdefault(passage.section, []).append(passage)
        order = ctx.rng("sections").permutation(len(sections))
        names = [list(sections)[i] for i in order]
        chosen: list[Passage] = []
        while len(chosen) < min(self.passages, len(passages)):
            for name in names:
                if sections[name] and len(chosen) < self.passages:
                    chosen.append(sections[name].pop(0))
        return chosen


def _prompt(passage: Passage) -> str:
    shown = "\n\n".join(f"Passage: {p}\nQuestion: {q}\nAnswer: {a}" for p, q, a in SHOTS)
    return f"{shown}\n\nPassage: {passage.shown}\nQuestion:"
