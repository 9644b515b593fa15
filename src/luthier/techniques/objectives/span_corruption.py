"""Span corruption: -sum over the target of log p(token | the text with its spans left out), as T5 is pretrained.

Spans of a text, `mean_span` tokens long on average and `share` of it together, each give way to a mark `<extra_id_n>`; the
target names each mark with what stood there, and ends with the mark after the last and the end token. The tokens of target
and text together are all of the text. A tokenizer without marks gives its mask token to each span. What a row leaves out
depends on the row and the seed alone.

When it helps: an encoder-decoder and much unlabelled text. Source: Raffel et al. 2020, arXiv 1910.10683, section 3.1.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Turn
from luthier.core.kinds import DroppedRow, Features, Objective, Tokens
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render

MARK = "<extra_id_{}>"


class SpanCorruption(Objective, name="span-corruption"):
    """Learn to write what was left out of raw texts."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"nll": "additive"}
    architectures: ClassVar[tuple[Any, ...]] = ("encoder-decoder",)
    share: float = Field(0.15, gt=0, lt=1, description="share of the tokens that is left out")
    mean_span: float = Field(3.0, ge=1, description="mean length of a span, in tokens")

    def rows(self, example: Example, render: Render, rng: Rng) -> list[Features]:
        return [self.encode(example, render, rng)]

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        """Raises UserError for a tokenizer without marks and mask."""
        ids = render.text(replace(example, turns=tuple(Turn("user", t.parts) for t in example.turns))).ids
        end = render.stop_id
        body = ids[:-1] if ids[-1:] == [end] else ids
        if len(body) < 2:
            raise DroppedRow(Dropped(example.id, "nothing to learn", "the text is too short for a span to be left out"))
        source: list[int] = []
        target: list[int] = []
        at = 0
        spans = self.spans(len(body), rng("spans"))
        for n, (begin, length) in enumerate(spans):
            mark = self._mark(render, n)
            source += [*body[at:begin], mark]
            target += [mark, *body[begin:begin + length]]
            at = begin + length
        source += [*body[at:], *ids[len(body):]]
        target += [self._mark(render, len(spans)), end]
        return {"input": Tokens(source, [False] + [True] * len(target), [render._decoder_start(), *target])}

    def spans(self, tokens: int, draw: np.random.Generator) -> list[tuple[int, int]]:
        """(first token, length) of each span, in order, no two of them side by side; one token at least stays."""
        out = min(tokens - 1, max(1, round(self.share * tokens)))
        count = max(1, min(round(out / self.mean_span), out, tokens - out))
        lengths, gaps = _parts(out, count, draw), _parts(tokens - out, count, draw)
        if draw.random() < 0.5:  # the text begins or ends with a span
            gaps = [gaps[-1] - 1, *gaps[:-1]] if gaps[-1] > 1 else gaps
        found, at = [], 0
        for gap, length in zip(gaps, lengths, strict=True):
            found.append((at + gap, length))
            at += gap + length
        return found

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"nll": batch["input"].learned}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {"nll": run("policy", batch["input"]).nll().sum()}

    @staticmethod
    def _mark(render: Render, n: int) -> int:
        vocabulary = render.tokenizer.get_vocab()
        marked = MARK.format(0) in vocabulary
        known = vocabulary.get(MARK.format(n)) if marked else render.tokenizer.mask_token_id
        if known is None:
            raise UserError(f"span-corruption: the tokenizer has no mark {MARK.format(n)}; a T5's has a hundred. Give shorter "
                            "rows (max_tokens_per_example), or another base.")
        return int(known)


def _parts(total: int, count: int, draw: np.random.Generator) -> list[int]:
    """`total` in `count` parts of at least 1, every way equally likely."""
    cuts = sorted(draw.permutation(total - 1)[:count - 1] + 1)
    return [int(b - a) for a, b in zip([0, *cuts], [*cuts, total], strict=True)]
