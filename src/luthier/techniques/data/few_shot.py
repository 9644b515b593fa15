"""Questions by prompting a local model with a few solved examples.

The writer sees three passages with a question and a short answer each, then a new passage, and continues. What it
writes is parsed strictly; anything else is dropped with the reason. Finished batches are journalled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Passage
from luthier.core.kinds import DataStep, Decoder
from luthier.core.step import Ctx
from luthier.techniques.data._questions import SHOTS, spread, written

_WRITTEN = re.compile(r"\A\s*(?P<question>[^\n]{8,300}\?)\s*\nAnswer:[^\S\n]*(?P<answer>\S[^\n]{0,299})(?:\n|\Z)")


class FewShot(DataStep, name="few-shot"):
    """Questions written by a language model that is shown three examples."""

    roles: ClassVar[tuple[str, ...]] = ("writer",)
    passages: int = Field(128, ge=1, description="how many passages are asked about; spread over all sections")
    min_words: int = Field(25, ge=1, description="shorter passages are not asked about")
    shots: int = Field(3, ge=0, le=3, description="solved examples shown first; 0 for a writer that was tuned to write")
    decoder: Slot[Decoder] = Field(named("greedy:max_new_tokens=48"), description="how the writer writes")

    def apply(self, rows: Iterator[Passage], ctx: Ctx) -> Iterator[Example | Dropped]:
        from luthier.engine.rendering import Render

        if "writer" not in ctx.roles:
            raise UserError("few-shot needs a writer: inputs: {writer: base}.")
        writer = ctx.roles["writer"]
        render = Render(writer.tokenizer, writer.architecture, writer.limit)
        chosen = spread([p for p in rows if len(p.text.split()) >= self.min_words], lambda p: p.section, self.passages, ctx.rng)
        prompts = [render._start() + render.encode(asking(p, self.shots)) for p in chosen]
        made = ctx.engine.generate(writer, prompts, self.decoder, rng=ctx.rng.within("few-shot"), stop="two lines",
                                   journal=ctx.journal, progress=ctx.progress)
        for passage, result in zip(chosen, made, strict=True):
            match = _WRITTEN.match(result.text)
            if match is None:
                yield Dropped(f"{self.info.name}/{passage.id}", "not a question and an answer", result.text[:200])
            else:
                yield written(passage, 0, self.info.name, match["question"].strip(), match["answer"].strip())


def asking(passage: Passage, shots: int = 0) -> str:
    """What the writer continues with ` QUESTION\\nAnswer: ANSWER`: solved examples, then the passage."""
    shown = "".join(f"Passage: {p}\nQuestion: {q}\nAnswer: {a}\n\n" for p, q, a in SHOTS[:shots])
    return f"{shown}Passage: {passage.shown}\nQuestion:"
