"""distractors: each question among the passages that a retriever would show, and some without the one that answers it.

A row that shows its golden passage g becomes (question, g and n hard negatives, answer): negatives are the best
passages that the retriever finds for the question and that do not answer it, shuffled with g. In a share `no_gold_rate`
of the rows g is left out, n + 1 negatives are shown and the answer is "not found in the documents". Passages are
numbered, and an answer ends with the number of g; `meta["cited"]` keeps the sentence of g that shares most words with
the answer. Rows that show no passage stay as they are, so that `show-passage` before this step decides how many
questions are learned by heart.

When it helps: a model that is asked with retrieved passages must have learned to choose among them, and to say when
none answers. Source: Sharma et al. 2024, "Retrieval Augmented Generation for Domain-specific Question Answering"
(the share of rows without gold is not stated there); Zhang et al. 2024, "RAFT". Needs the role `retriever`:
queries and k to passages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.citing import ABSTENTION, cite, supporting
from luthier.core.errors import UserError
from luthier.core.example import Example, Passage
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import words

BATCH = 256
# A passage that holds the whole answer, of so many words or more, answers the question too: it is no negative.
TELLING_WORDS = 3


class Distractors(DataStep, name="distractors", seeds=[1]):
    """Hard negatives beside the golden passage, rows without it that teach abstention, and citations."""

    roles: ClassVar[tuple[str, ...]] = ("retriever",)
    negatives: int = Field(2, ge=1, description="passages beside the golden one")
    no_gold_rate: float = Field(0.2, ge=0, lt=1, description="share of rows whose golden passage is left out, drawn row by row")
    depth: int = Field(20, ge=1, description="how many of the retriever's best passages negatives are taken from")
    cite: bool = Field(True, description="an answer ends with the number of the passage it rests on")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example]:
        """Raises UserError when there is no retriever."""
        if "retriever" not in ctx.roles:
            raise UserError("distractors needs a retriever: give its step the inputs {index: index, encoder: encoder}.")
        while batch := list(islice(rows, BATCH)):
            shown = [row for row in batch if row.part("passage")]
            found = ctx.roles["retriever"]([row.part("question") for row in shown], self.depth) if shown else []
            made = {row.id: self._row(row, hits, ctx) for row, hits in zip(shown, found, strict=True)}
            yield from (made.get(row.id, row) for row in batch)

    def _row(self, row: Example, hits: Sequence[Passage], ctx: Ctx) -> Example:
        from luthier.engine.rendering import passages_of, with_answer, with_passages

        gold = _gold(row)
        text = " ".join(passages_of(row)[0].split())
        wrong = [p for p in hits if p.id not in gold and p.shown != text and not _answers(p, row)]
        rng = ctx.rng("distractors", row.id)
        # Both draws whatever their outcome: a row's order does not depend on the rate.
        without, order = rng.random() < self.no_gold_rate, rng.permutation(self.negatives + 1)
        without &= bool(wrong)
        names = [] if without else [gold[0] if gold else ""]
        names += [p.id for p in wrong[:self.negatives + 1 - len(names)]]
        texts = {**{p.id: p.shown for p in wrong}, **({} if without else {names[0]: text})}
        names = [names[i] for i in order if i < len(names)]
        meta: dict[str, Any] = {**row.meta, "answer": row.answer, "shown": names}
        made = with_passages(row, [texts[name] for name in names])
        if without:
            return replace(with_answer(made, ABSTENTION), references=(), meta={**meta, "gold": [], "left_out": list(gold)})
        place = names.index(gold[0] if gold else "") + 1
        meta["cited"] = {"number": place, **_support(row.answer, text, next((p for p in hits if p.id in gold), None))}
        return replace(with_answer(made, cite(row.answer, place)) if self.cite else made, meta=meta)


def _gold(row: Example) -> list[str]:
    gold = row.meta.get("gold") or ([row.source] if row.source else [])
    return [gold] if isinstance(gold, str) else list(gold)


def _answers(passage: Passage, row: Example) -> bool:
    """Whether a passage holds the whole answer, so that it would be wrong to call it a distractor."""
    answer = words(row.answer)
    return len(answer) >= TELLING_WORDS and f" {' '.join(answer)} " in f" {' '.join(words(passage.shown))} "


def _support(answer: str, shown: str, gold: Passage | None) -> dict[str, Any]:
    """The supporting sentence, with the page and line where its passage begins; 0 where they are not known."""
    if gold is None:
        return {"sentence": supporting(shown, answer), "page": 0, "line": 0}
    return {"sentence": supporting(gold.text, answer), "page": gold.page, "line": gold.line}
