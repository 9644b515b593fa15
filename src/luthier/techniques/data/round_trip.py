"""Filter: questions that a reading model answers as their writer did.

The model is shown the passage and the question; the row stays when the F1 of the words of its answer with the row's is at
least `threshold`. Source: Alberti et al. 2019, "Synthetic QA corpora generation with roundtrip consistency". Seed 14.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example
from luthier.core.kinds import DataStep, Decoder
from luthier.core.step import Ctx
from luthier.techniques.data._questions import units


class RoundTrip(DataStep, name="round-trip", version=1):
    """Leave out questions that the writer model, reading the passage, answers otherwise."""

    roles: ClassVar[tuple[str, ...]] = ("writer",)
    threshold: float = Field(0.5, ge=0, le=1, description="least F1 of the words of both answers")
    decoder: Slot[Decoder] = Field(named("greedy:max_new_tokens=24"), description="how the reader answers")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        from luthier.engine.rendering import Render

        if "writer" not in ctx.roles:
            raise UserError("round-trip needs a reading model: inputs: {writer: base}.")
        reader, given = ctx.roles["writer"], list(rows)
        render = Render(reader.tokenizer, reader.architecture, reader.limit)
        made = ctx.engine.generate(reader, [render.prompt(r) for r in given], self.decoder, stop="newline",
                                   rng=ctx.rng.within(self.info.name), journal=ctx.journal, progress=ctx.progress)
        for row, said in zip(given, made, strict=True):
            same = agreement(said.text, row.answer)
            yield row if same >= self.threshold else Dropped(
                row.id, "answered otherwise", f"F1 {same:.2f}: {said.text.strip()[:100]} | {row.answer}")


def agreement(left: str, right: str) -> float:
    """F1 of two bags of words: 2c / (|left| + |right|), c counted with repetition."""
    a, b = Counter(units(left)), Counter(units(right))
    return 2 * (a & b).total() / (a.total() + b.total()) if a and b else 0.0
