"""rouge-l: longest common subsequence of the words of an answer and those of the nearest acceptable answer.

With words P of the prediction, G of an answer and l = length of their longest common subsequence: precision = l / |P|,
recall = l / |G|, ROUGE-L = 2 · precision · recall / (precision + recall) = 2l / (|P| + |G|); the largest over the
acceptable answers. Words are lower-case runs of letters and digits of any script, not stemmed; scripts without spaces
count each character. Questions without an answer have no value here: `abstains` judges those.

When it helps: answers of a sentence or more, where the order of words matters. Source: Lin 2004, "ROUGE: a package for
automatic evaluation of summaries"; tokens and F as in the package rouge-score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import gold_answers, pairs, tokens


class RougeL(Metric, name="rouge-l"):
    """Mean ROUGE-L F of answers with the nearest acceptable answer."""

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` in [0, 1]; None for a question without an answer."""
        return [{"id": e.id, "value": max((rouge_l(p.text, a) for a in gold_answers(e)), default=None)}
                for e, p in pairs(examples, predictions)]


def rouge_l(text: str, answer: str) -> float:
    """ROUGE-L F of two texts; 0 when one of the two has no words."""
    said, wanted = tokens(text), tokens(answer)
    common = common_subsequence(said, wanted)
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, in O(|left| · |right|) time and O(|right|) memory."""
    row = [0] * (len(right) + 1)
    for one in left:
        diagonal = 0
        for j, other in enumerate(right, 1):
            diagonal, row[j] = row[j], diagonal + 1 if one == other else max(row[j], row[j - 1])
    return row[-1]
