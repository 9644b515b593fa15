"""lines: the share of an answer's lines that are right, each in its place.

    value = (number of i with line i of the answer = line i of the reference) / lines of the reference

Lines without text don't count, nor does white space at a line's ends; everything else does: a missing bracket is wrong.
Of several references the best counts. When it helps: several things asked at once that must be answered in order, and
formats. Source: Xu et al. 2024, arXiv 2405.13053, composite-n (seed 109).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import gold_answers, pairs


class Lines(Metric, name="lines"):
    """Share of an answer's lines that are right, in order."""

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` from 0 to 1; None for a question without an answer."""
        return [{"id": e.id, "value": max((right(p.text, g) for g in gold_answers(e)), default=None)}
                for e, p in pairs(examples, predictions)]


def right(said: str, wanted: str) -> float:
    """The share of the wanted lines that stand in their places."""
    there, asked = _lines(said), _lines(wanted)
    return sum(a == b for a, b in zip(there, asked, strict=False)) / len(asked) if asked else 0.0


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]
