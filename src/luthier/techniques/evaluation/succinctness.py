"""succinctness: length of an answer in words over that of the nearest acceptable answer in length; lower is briefer.

ratio = words(answer) / words(reference), of the reference whose length is nearest; 1 is as long as the reference, 2
twice as long. No value for an answer that abstains or says nothing, which would be the briefest of all, nor without a
reference.

When it helps: tuning for style; read it beside a measure of being right. Source: Balaguer et al. 2024, "RAG vs
fine-tuning" (succinctness; graded by a model there, measured here).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import abstained, gold_answers, pairs, tokens


class Succinctness(Metric, name="succinctness", seeds=[24]):
    """Words of an answer over words of the reference."""

    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "times the reference"

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` the ratio, above 0, or None; `words` of the answer."""
        records = []
        for example, prediction in pairs(examples, predictions):
            said = len(tokens(prediction.text))
            lengths = [len(tokens(a)) for a in gold_answers(example)]
            applies = bool(said and lengths) and not abstained(prediction.text)
            value = said / min(lengths, key=lambda n: (abs(n - said), n)) if applies else None
            records.append({"id": example.id, "value": value, "words": said})
        return records
