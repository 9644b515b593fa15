"""What an arm is shown before a question, and what its answer cites: shared by evaluating and asking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.core.citing import parse, supporting
from luthier.core.errors import UserError
from luthier.core.example import Example, Passage
from luthier.core.kinds import Prediction

if TYPE_CHECKING:
    from luthier.core.artifact import Artifact
    from luthier.core.step import Ctx


def retrieve(rows: Sequence[Example], k: int, inputs: Mapping[str, Artifact], ctx: Ctx, oracle: bool = False
             ) -> list[list[Passage]]:
    """The k best passages for each question, best first, sections that a row hides (`meta["hidden"]`) left out.

    With `oracle` the passages that hold the answer (`meta["gold"]`) come first: what a perfect retriever would find.

    Raises:
        UserError: an oracle without the documents, or a gold passage that they don't hold.
    """
    from luthier.pipelines.steps.index import searcher

    search = searcher(inputs["index"], inputs["encoder"], ctx)
    found = search([e.part("question") for e in rows], k, [e.meta.get("hidden") or () for e in rows])
    if not oracle:
        return found
    if "documents" not in inputs:
        raise UserError("retriever: oracle takes passages from the documents: it needs the input 'documents'.")
    wanted = {name for e in rows for name in gold(e)}
    held = {p.id: p for p in inputs["documents"].passages() if p.id in wanted}
    lost = sorted(wanted - held.keys())
    if lost:
        raise UserError(f"The documents have no passage '{lost[0]}', which is the gold passage of a question. "
                        "Evaluate with the documents that the questions were written from.")
    return [[*(held[name] for name in gold(e)), *(p for p in hits if p.id not in gold(e))][:k]
            for e, hits in zip(rows, found, strict=True)]


def gold(example: Example) -> list[str]:
    """Ids of the passages that hold an example's answer."""
    found = example.meta.get("gold") or ()
    return [found] if isinstance(found, str) else list(found)


def as_shot(example: Example, reads: bool) -> Example:
    """A training row as a solved example: with its passages where passages are read, else the bare question and answer."""
    from luthier.engine.rendering import passages_of, with_answer, with_passages

    if reads:
        return with_passages(example, passages_of(example))
    answer = example.meta.get("answer")  # of a row that was trained with passages: its answer without the citation
    return with_passages(with_answer(example, answer) if answer else example, ())


def control_tokens(tokenizer: Any) -> frozenset[str]:
    """Texts that a tokenizer reads as control tokens: ends of turns, starts of roles and the like."""
    added = tokenizer.added_tokens_decoder.values()
    return frozenset({*map(str, tokenizer.all_special_tokens), *(t.content for t in added if t.special)} - {""})


def harmless(passages: Sequence[Passage], tokenizer: Any) -> list[Passage]:
    """Passages as text and nothing else: a control token that stands in one is broken up by a word joiner, U+2060.

    A document that says "<end_of_turn>" would else end the question that it is shown with, and speak in another role.
    """
    marks = sorted(control_tokens(tokenizer), key=len, reverse=True)

    def broken(text: str) -> str:
        for mark in marks:
            text = text.replace(mark, f"{mark[0]}\u2060{mark[1:]}")
        return text

    return [replace(p, text=broken(p.text), headings=tuple(map(broken, p.headings))) for p in passages]


def cited(prediction: Prediction, passages: Sequence[str]) -> Prediction:
    """A prediction whose closing citations are taken out of its text; `passages` are the ids shown, in order.

    Where nothing was shown, nothing can be cited: brackets are text.
    """
    if not passages:
        return prediction
    text, numbers = parse(prediction.text)
    if not numbers:
        return prediction
    names = tuple(passages[n - 1] if 0 < n <= len(passages) else f"[{n}]" for n in numbers)
    return replace(prediction, text=text, citations=names)


def citations(prediction: Prediction, passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """What an answer cites, for reading: the passage's number and place, and the sentence that supports the answer."""
    found = {p.id: (n, p) for n, p in enumerate(passages, 1)}
    made = []
    for name in prediction.citations:
        if name in found:
            number, passage = found[name]
            made.append({"number": number, "id": name, "document": passage.document, "page": passage.page,
                         "line": passage.line, "sentence": supporting(passage.text, prediction.text)})
    return made
