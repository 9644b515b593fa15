"""perplexity: exp of the mean negative log-probability of a text's tokens.

PPL = exp(-log p(text) / tokens). It depends on the tokenizer: compare only models that share one, else use
`bits-per-byte`.

When it helps: a base against the same base after continued pretraining. Source: Jelinek et al. 1977.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import pairs


class Perplexity(Metric, name="perplexity"):
    """Perplexity of raw texts; lower is better."""

    higher_is_better: ClassVar[bool] = False

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` the text's perplexity with `nats` and `tokens`; None for a prediction without a log-probability."""
        found = []
        for example, prediction in pairs(examples, predictions):
            if prediction.log_probability is None or not prediction.tokens:
                found.append({"id": example.id, "value": None})
                continue
            nats = -prediction.log_probability
            found.append({"id": example.id, "value": math.exp(nats / prediction.tokens), "nats": nats,
                          "tokens": prediction.tokens})
        return found

    def reduce(self, records: Sequence[Mapping[str, Any]]) -> float:
        """Perplexity of all texts together, token by token; nan when there are none."""
        known = [r for r in records if r["value"] is not None]
        return math.exp(sum(r["nats"] for r in known) / sum(r["tokens"] for r in known)) if known else float("nan")
