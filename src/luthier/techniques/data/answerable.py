"""Filter: questions whose answer stands in their passage.

Two conditions. Support: the share of the answer's content words that occur in the passage. Gain, where a writer model
is at hand: log p(answer | passage, question) - log p(answer | question) per token, which is small when the answer is a
phrase that fits any question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from luthier.core.example import Dropped, Example
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import content_words, words


class Answerable(DataStep, name="answerable"):
    """Leave out questions whose answer their passage does not support."""

    roles: ClassVar[tuple[str, ...]] = ("writer",)
    support: float = Field(0.8, ge=0, le=1, description="least share of the answer's words that stand in the passage")
    gain: float = Field(0.5, description="least gain in log-probability per answer token from seeing the passage, nats")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        examples = list(rows)
        gains = self._gains(examples, ctx) if ctx.roles.get("writer") else [float("inf")] * len(examples)
        for row, gain in zip(examples, gains, strict=True):
            passage = row.part("passage")
            answer = content_words(row.answer) or set(words(row.answer))
            supported = len(answer & set(words(passage))) / len(answer) if answer else 0.0
            if supported < self.support:
                yield Dropped(row.id, "not answerable", f"{supported:.0%} of the answer's words stand in the passage: "
                                                        f"{row.part('question')} | {row.answer}")
            elif gain < self.gain:
                yield Dropped(row.id, "not answerable", f"the passage adds {gain:.2f} nats a token: "
                                                        f"{row.part('question')} | {row.answer}")
            elif content_words(row.answer) <= content_words(row.part("question")):
                yield Dropped(row.id, "answers itself", f"{row.part('question')} | {row.answer}")
            else:
                yield row

    def _gains(self, examples: list[Example], ctx: Ctx) -> list[float]:
        from luthier.engine.rendering import Render, with_passages

        writer = ctx.roles["writer"]
        render = Render(writer.tokenizer, writer.architecture, writer.limit)
        pairs = []
        for row in examples:
            answer = render.encode(f" {row.answer}")
            pairs += [(render.prompt(row), answer), (render.prompt(with_passages(row, ())), answer)]
        key = f"gains/{writer.identity}/{len(examples)}/" + "|".join(r.id for r in examples[:3])
        scores = ctx.journal.do(key, lambda: [s for s, _ in ctx.engine.score(writer, pairs)])
        return [(scores[2 * i] - scores[2 * i + 1]) / max(1, len(pairs[2 * i][1])) for i in range(len(examples))]
