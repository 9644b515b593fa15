"""similarity: cosine of the meanings of an answer and of the nearest acceptable answer, by an encoder.

value = max over acceptable answers a of cos(e(answer), e(a)), e being the encoder's embedding (mean-pooled, of length
1). An empty answer has 0. It is high for texts about one thing, also where they say the opposite: read it beside F1.
The number depends on the encoder: compare only what one encoder measured. Questions without an answer have no value.

When it helps: long answers that may be worded in many ways. Source: Balaguer et al. 2024, "RAG vs fine-tuning"; Reimers
and Gurevych 2019, "Sentence-BERT".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import gold_answers, pairs


class Similarity(Metric, name="similarity", seeds=[24]):
    """Cosine of answer and reference by an encoder."""

    roles: ClassVar[tuple[str, ...]] = ("encoder",)
    unit: ClassVar[str] = "cosine"
    max_tokens: int = Field(256, ge=8, description="how much of an answer the encoder reads")

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` in [-1, 1]; None for a question without an answer. Raises UserError without an encoder."""
        if "encoder" not in ctx.roles:
            raise UserError("similarity needs an encoder: give the evaluate step the input {encoder: encoder}.")
        asked = [(e.id, p.text.strip(), gold_answers(e)) for e, p in pairs(examples, predictions)]
        texts = list(dict.fromkeys(t for _, said, answers in asked if answers and said for t in (said, *answers)))
        vectors = dict(zip(texts, ctx.engine.embed(ctx.roles["encoder"], texts, self.max_tokens), strict=True)) if texts else {}
        return [{"id": name, "value": None if not answers else 0.0 if not said else
                 max(float(vectors[said] @ vectors[a]) for a in answers)} for name, said, answers in asked]
