"""bleu: how many of an answer's runs of one to four words stand in a reference, and whether it is as long.

    BLEU = BP · exp(1/4 · sum over n = 1..4 of log p_n),  p_n = clipped matches of n-grams / n-grams of the answer
    BP = 1 for c >= r, exp(1 - r / c) for c < r, with r the length of the reference that is nearest to c

`value` is BLEU of one answer, smoothed for n > 1 by p_n = (matches + 1) / (n-grams + 1): without that nearly every short answer
has 0. `corpus` among the details is BLEU as it is published: counts and lengths of all answers are added first, and nothing
is smoothed. Words by `13a` are those of NIST's mteval-v13a (as in WMT's results), `code` takes names, numbers and single signs
apart, `space` splits at white space alone. Case counts. When it helps: to stand beside published numbers; `chrf` agrees better
with people. Source: Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation"; smoothing Lin, Och
2004, "ORANGE".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._grams import geometric, matched, penalty
from luthier.techniques.evaluation._shared import gold_answers, pairs
from luthier.techniques.evaluation._source import code_words

_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
# Signs stand alone; a point or comma too, unless digits are on both sides; so does a dash after a digit.
_RULES = ((re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "), (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
          (re.compile(r"([\.,])([^0-9])"), r" \1 \2"), (re.compile(r"([0-9])(-)"), r"\1 \2 "))


class Bleu(Metric, name="bleu"):
    """BLEU of words, from 0 to 1."""

    order: int = Field(4, ge=1, description="longest n-gram of words")
    words: Literal["13a", "code", "space"] = Field("13a", description="how a text is taken apart: as WMT does, as a program, "
                                                                      "or at white space")

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` from 0 to 1 and the counts behind it; None for a question without an answer."""
        split = WORDS[self.words]
        found: list[dict[str, Any]] = []
        for e, p in pairs(examples, predictions):
            references = [split(g) for g in gold_answers(e)]
            if not references:
                found.append({"id": e.id, "value": None})
                continue
            m = matched(split(p.text), references, self.order)
            smoothed = [(hit + (n > 1)) / (total + (n > 1)) if total + (n > 1) else 0.0
                        for n, (hit, total) in enumerate(zip(m.matches, m.totals, strict=True), 1)]
            found.append({"id": e.id, "value": m.penalty() * geometric(smoothed), "matches": list(m.matches),
                          "totals": list(m.totals), "length": m.length, "wanted": m.wanted})
        return found

    def details(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """`corpus`: BLEU of all answers together."""
        counted = [r for r in records if "totals" in r]
        if not counted:
            return {}
        matches, totals = ([sum(r[name][n] for r in counted) for n in range(self.order)] for name in ("matches", "totals"))
        precisions = [hit / total if total else 0.0 for hit, total in zip(matches, totals, strict=True)]
        return {"corpus": penalty(*(sum(r[name] for r in counted) for name in ("length", "wanted"))) * geometric(precisions)}


def words_13a(text: str) -> list[str]:
    """Words as mteval-v13a takes them apart, for texts in Latin letters."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for name, sign in _ENTITIES:
        text = text.replace(name, sign)
    text = f" {text} "
    for rule, by in _RULES:
        text = rule.sub(by, text)
    return text.split()


WORDS: dict[str, Callable[[str], list[str]]] = {"13a": words_13a, "code": code_words, "space": str.split}
