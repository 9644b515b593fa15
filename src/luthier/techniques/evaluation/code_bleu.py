"""code-bleu: how near a Python program is to a reference by its words, its syntax tree and the flow of its values.

    CodeBLEU = a · BLEU + b · BLEU_weight + c · Match_ast + d · Match_df        (a = b = c = d = 1/4)

    BLEU         n-grams of one to four words; an order without a match counts 0.1 of one, one that no reference is long enough
                 for is left out
    BLEU_weight  BP · sum of mu · clipped matches / sum of mu · words, single words alone, mu = 5 for keywords and 1 for others
    Match_ast    subtrees of the reference that the answer has, clipped, / subtrees of the reference; leaves are left out
    Match_df     the same of the flow of values, whose variables are numbered as they occur: names do not count

A reference in which no value flows has no Match_df, and the other weights are scaled up. An answer that does not parse shares
no subtree and no flow; a row whose reference does not has no value. Of several references, words are matched with all, trees
and flows with the nearest. The published scorer reads trees and flows with tree-sitter, here Python's own `ast` does: numbers
of the two are near, and not the same.
When it helps: programs with one right shape and many right names; tests say more where there are some (`pass-at-k`,
`refactoring`). Source: Ren et al. 2020, "CodeBLEU: a method for automatic evaluation of code synthesis", arXiv 2009.10297;
used by Palit & Sharma 2024 (seed 143).
"""

from __future__ import annotations

import ast
import keyword
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._grams import geometric, grams, matched
from luthier.techniques.evaluation._shared import gold_answers, pairs
from luthier.techniques.evaluation._source import code_words, flows, parsed, subtrees

PARTS = ("ngram", "weighted", "syntax", "dataflow")
ORDER, KEYWORD, NOTHING = 4, 5.0, 0.1


class CodeBleu(Metric, name="code-bleu"):
    """Words, keywords, syntax and flow of values that a program shares with a reference, from 0 to 1."""

    language: Literal["python"] = Field("python", description="language of the programs")
    weights: tuple[float, float, float, float] = Field((0.25, 0.25, 0.25, 0.25), description="of n-grams, keywords, syntax and "
                                                                                             "flow of values")

    @field_validator("weights")
    @classmethod
    def _legal(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
            raise ValueError(f"weights {list(weights)}: four numbers from 0 on that add up to 1")
        return weights

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` and its four parts; None, and why, for a row without a reference that is Python."""
        found = []
        for e, p in pairs(examples, predictions):
            trees = [(text, tree) for text in gold_answers(e) if (tree := parsed(text))]
            if trees:
                parts = self.parts(p.text, trees)
                found.append({"id": e.id, "value": self._weighed(parts), **parts})
            else:
                found.append({"id": e.id, "value": None, "why": "no reference that is a Python program"})
        return found

    def details(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The mean of each part."""
        told = {part: [r[part] for r in records if r.get(part) is not None] for part in PARTS}
        return {part: sum(values) / len(values) for part, values in told.items() if values}

    def between(self, said: str, wanted: str) -> float:
        """CodeBLEU of one answer and one reference, which must parse."""
        tree = parsed(wanted)
        assert tree is not None
        return self._weighed(self.parts(said, [(wanted, tree)]))

    def parts(self, said: str, references: Sequence[tuple[str, ast.Module]]) -> dict[str, float | None]:
        """The four parts; None for the flow of values where none of the references has any."""
        words, wanted, tree = code_words(said), [code_words(text) for text, _ in references], parsed(said)
        m = matched(words, wanted, ORDER)
        orders = [n for n in range(ORDER) if max(map(len, wanted)) > n]
        precisions = [(m.matches[n] or NOTHING) / max(1, m.totals[n]) for n in orders] if m.matches[0] else []
        shared = [share(subtrees(tree) if tree else Counter(), subtrees(other)) for _, other in references]
        flowing = [share(flows(tree) if tree else Counter(), flows(other)) for _, other in references]
        return {"ngram": m.penalty() * geometric(precisions), "weighted": m.penalty() * keywords(words, wanted),
                "syntax": max((s for s in shared if s is not None), default=0.0),
                "dataflow": max((s for s in flowing if s is not None), default=None)}

    def _weighed(self, parts: Mapping[str, float | None]) -> float:
        there = [(weight, part) for weight, part in zip(self.weights, parts.values(), strict=True) if part is not None]
        total = sum(weight for weight, _ in there)
        return sum(weight * part for weight, part in there) / total if total else 0.0


def share(mine: Counter[Any], theirs: Counter[Any]) -> float | None:
    """Share of the things of a reference that an answer has, each at most as often as it has it; None where there are none."""
    return sum((mine & theirs).values()) / sum(theirs.values()) if theirs else None


def keywords(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Precision of single words, in which a keyword weighs as much as five others."""
    mine, most = grams(words, 1), Counter[tuple[str, ...]]()
    for reference in references:
        most |= grams(reference, 1)

    def weight(counted: Counter[tuple[str, ...]]) -> float:
        return sum(count * (KEYWORD if keyword.iskeyword(word) else 1.0) for (word,), count in counted.items())

    return weight(mine & most) / weight(mine) if mine else 0.0
