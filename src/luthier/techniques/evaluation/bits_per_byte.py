"""bits-per-byte: how many bits a model needs for each byte of a text it reads.

BPB = -log p(text) / (ln 2 * bytes of the text in UTF-8). Unlike perplexity it does not depend on how a tokenizer cuts
the text, so models with different tokenizers, or with new tokens, can be compared. A byte costs 8 bits if nothing is
known of it.

When it helps: raw texts kept out of continued pretraining. Source: Gao et al. 2020, "The Pile", section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import pairs


class BitsPerByte(Metric, name="bits-per-byte"):
    """Bits for each byte of a text; fewer are better."""

    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "bits a byte"

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` bits a byte with `bits` and `bytes`; None for a prediction without a log-probability."""
        found = []
        for example, prediction in pairs(examples, predictions):
            size = len("\n\n".join(t.text for t in example.turns).encode())
            if prediction.log_probability is None or not size:
                found.append({"id": example.id, "value": None})
                continue
            bits = -prediction.log_probability / math.log(2)
            found.append({"id": example.id, "value": bits / size, "bits": bits, "bytes": size})
        return found

    def reduce(self, records: Sequence[Mapping[str, Any]]) -> float:
        """All bits over all bytes; nan when there are none."""
        known = [r for r in records if r["value"] is not None]
        return sum(r["bits"] for r in known) / sum(r["bytes"] for r in known) if known else float("nan")
