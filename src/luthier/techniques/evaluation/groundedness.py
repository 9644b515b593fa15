"""groundedness: share of an answer's content words that stand in the passages it was shown. No model is asked.

groundedness = |{w in content(answer): w in words(passages)}| / |content(answer)|, content(answer) being its different
words without those that carry no topic (English function words; an answer of such words alone is judged by all its
words). A word counts as it stands, lower-case and not stemmed, so "prunes" is not supported by "pruned". A word of a
passage that the answer negates counts as supported: this measures where words come from, not whether what they say is
true. No value for an answer that abstains, says nothing, or was shown nothing.

When it helps: an answer that is wrong but taken from the passages has another cure than one that is made up. Source:
Sharma et al. 2024 (share of answer tokens supported by context); Shuster et al. 2021, "Retrieval augmentation reduces
hallucination in conversation" (knowledge F1, whose precision this is).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from luthier.core.citing import words
from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import abstained, pairs

FUNCTION_WORDS = frozenset("""
a about after all also an and any are as at be because been before being between both but by can could did do does each for from
had has have he her his how i if in into is it its may might more most must no nor not of on one only or other our out over
she should so some such than that the their them then there these they this those through to under until up was we were what
when where which while who whose why will with would you your
""".split())


class Groundedness(Metric, name="groundedness", seeds=[1, 24]):
    """Share of the answer's content words that stand in the passages it was shown."""

    unit: ClassVar[str] = "share of words"

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` in [0, 1] or None, with the words that no passage holds as `unsupported`."""
        records: list[dict[str, Any]] = []
        for example, prediction in pairs(examples, predictions):
            said = list(dict.fromkeys(words(prediction.text)))
            said = [w for w in said if w not in FUNCTION_WORDS] or said
            if not said or not prediction.shown or abstained(prediction.text):
                records.append({"id": example.id, "value": None, "unsupported": []})
                continue
            held = {w for text in prediction.shown for w in words(text)}
            lacking = [w for w in said if w not in held]
            records.append({"id": example.id, "value": 1 - len(lacking) / len(said), "unsupported": lacking})
        return records
