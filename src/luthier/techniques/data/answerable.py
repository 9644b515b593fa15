"""Filter: questions whose answer stands in their passage.

Two conditions. Support: the share of the answer's content words that occur in the passage. Gain, where a writer model
is at hand: log p(answer | passage, question) - log p(answer | question) per token, which is small when the answer is a
phrase that fits any question. An answer of four words or more that stands in the passage word for word needs no gain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from luthier.core.example import Dropped, Example
from luthier.core.identity import digest
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import content_words, support, words

VERBATIM_WORDS = 4


class Answerable(DataStep, name="answerable"):
    """Leave out questions whose answer their passage does not support."""

    roles: ClassVar[tuple[str, ...]] = ("writer",)
    support: float = Field(0.8, ge=0, le=1, description="least share of the answer's words that stand in the passage")
    gain: float = Field(0.5, description="least gain in log-probability per answer token from seeing the passage, nats")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        supported: list[Example] = []
        for row in rows:
            share = support(row)
            if share < self.support:
                yield Dropped(row.id, "not answerable", f"{share:.0%} of the answer's words stand in the passage: {_both(row)}")
            elif content_words(row.answer) <= content_words(row.part("question")):
                yield Dropped(row.id, "answers itself", _both(row))
            else:
                supported.append(row)
        gains = self._gains([r for r in supported if not _verbatim(r)], ctx) if ctx.roles.get("writer") else {}
        for row in supported:
            gain = gains.get(row.id, self.gain)
            if gain < self.gain:
                yield Dropped(row.id, "not answerable", f"the passage adds {gain:.2f} nats a token: {_both(row)}")
            else:
                yield row

    def _gains(self, examples: list[Example], ctx: Ctx) -> dict[str, float]:
        from luthier.engine.rendering import Render, with_passages

        writer = ctx.roles["writer"]
        render = Render(writer.tokenizer, writer.architecture, writer.limit)
        pairs = []
        for row in examples:
            answer = render.encode(f" {row.answer}")
            pairs += [(render.prompt(row), answer), (render.prompt(with_passages(row, ())), answer)]
        key = "gains/" + digest([writer.identity, pairs])
        scores = ctx.journal.do(key, lambda: [s for s, _ in ctx.engine.score(writer, pairs)])
        return {row.id: (scores[2 * i] - scores[2 * i + 1]) / max(1, len(pairs[2 * i][1]))
                for i, row in enumerate(examples)}


def _verbatim(row: Example) -> bool:
    """A longer phrase that stands in the passage word for word needs no model to vouch for it."""
    said = words(row.answer)
    return len(said) >= VERBATIM_WORDS and f" {' '.join(said)} " in f" {' '.join(words(row.part('passage')))} "


def _both(row: Example) -> str:
    return f"{row.part('question')} | {row.answer}"
