"""Rows for a retriever from what users clicked: {"query", "doc_id", "clicks", "impressions"?}, one JSON object a line.

With c the clicks of a pair and n its impressions, each summed over the lines of that pair, the relevance w is

    log      log(1 + c) / max over the query's documents of log(1 + c)
    rate     c / n
    binary   1

`doc_id` is a document or one of its passages. A document is read as its title and first sentences, a passage as it is
indexed. A pair that was shown and never clicked makes no row: not clicking says little (position, no need). When it
helps: a search box with users. Source: Sharma et al. 2024, arXiv 2404.14760 (seed 1), which grades relevance by
behaviour; the scales are ours.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, Passage, SourceFile, Turn
from luthier.core.files import json_lines
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._shared import NotRead, decode, read_bytes

SHOWN = 5
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
Pair = tuple[str, str]


class ClickLog(DataStep, name="click-log", seeds=[1]):
    """Pairs of query and document with a weight from clicks.

    `ctx.stream("passages")` gives the passages of the documents; `ctx.stream("duplicates")`, if anything, (passage left
    out, passage kept) pairs, so that a click on a repetition counts for what it repeats.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl",)
    weighting: Literal["log", "rate", "binary"] = Field("log", description="how clicks become the weight of a pair")
    sentences: int = Field(4, ge=1, description="how many of a document's first sentences are read with its title")
    max_megabytes: float = Field(1000, gt=0, description="larger files are refused")

    def apply(self, rows: Iterator[SourceFile], ctx: Ctx) -> Iterator[Example | Dropped]:
        """One example a pair of each file; `meta` holds weight, document and every clicked document of the query.

        Raises:
            UserError: no passages, a line that can't be used, documents that don't exist, or no click at all.
        """
        passages: list[Passage] = list(ctx.stream("passages"))
        if not passages:
            raise UserError("click-log needs the passages that were clicked: use it in a step with the input 'documents'.")
        known = _Known(passages, dict(ctx.stream("duplicates")))
        for file in rows:
            yield from self._pairs(file, known)

    def _pairs(self, file: SourceFile, known: _Known) -> Iterator[Example | Dropped]:
        clicks, shown = self._read(file)
        unknown = sorted({document for _, document in clicks if document not in known})
        if unknown:
            some = ", ".join(f"'{name}'" for name in unknown[:SHOWN])
            raise UserError(f"{file.id}: {len(unknown)} of the clicked documents are not among those that were read; first: "
                            f"{some}. A doc_id is the path below the documents' folder, or a passage's id.")
        weights = self._weights(clicks, shown, file)
        right: dict[str, list[str]] = {}
        for (query, document), weight in weights.items():
            if weight > 0:
                right.setdefault(query, []).extend(known.all_of(document))
        for n, ((query, document), weight) in enumerate(weights.items(), 1):
            name = f"{self.info.name}/{n}"
            if weight <= 0:
                yield Dropped(name, "shown, not clicked", f"{query} -> {document}")
                continue
            first, text = known.text(document, self.sentences)
            turns = (Turn("user", (Part(query, name="question"),)),
                     Turn("assistant", (Part(text, name="document"),), target=True))
            yield Example(name, turns, source=first.id, cluster=first.section, task="retrieval", meta={
                "generator": self.info.name, "weight": weight, "clicks": clicks[query, document], "document": document,
                "positives": list(dict.fromkeys(right[query])), "gold": list(dict.fromkeys(right[query]))})

    def _weights(self, clicks: Mapping[Pair, int], shown: Mapping[Pair, int], file: SourceFile) -> dict[Pair, float]:
        if not any(clicks.values()):
            raise UserError(f"{file.id}: all weights are zero, no pair was ever clicked: there is nothing to learn from.")
        if self.weighting == "binary":
            return {pair: float(count > 0) for pair, count in clicks.items()}
        if self.weighting == "rate":
            return {pair: count / shown[pair] if count else 0.0 for pair, count in clicks.items()}
        most: dict[str, int] = {}
        for (query, _), count in clicks.items():
            most[query] = max(most.get(query, 0), count)
        return {pair: math.log1p(count) / math.log1p(most[pair[0]]) if count else 0.0 for pair, count in clicks.items()}

    def _read(self, file: SourceFile) -> tuple[Counter[Pair], Counter[Pair]]:
        """Clicks and impressions of each pair, in the order of the file."""
        try:
            text, _ = decode(read_bytes(file, self.max_megabytes))
        except NotRead as why:
            raise UserError(f"{file.id}: {why.reason}{f' ({why.detail})' if why.detail else ''}.") from None
        clicks: Counter[Pair] = Counter()
        shown: Counter[Pair] = Counter()
        problems: list[str] = []
        for number, row in json_lines(text, problems):
            found = _problem(row, self.weighting == "rate")
            if found:
                problems.append(f"line {number}: {found}")
                continue
            pair = (" ".join(row["query"].split()), row["doc_id"])
            clicks[pair] += row["clicks"]
            shown[pair] += row.get("impressions") or 0
        if problems:
            more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise UserError(f"{file.id}: " + "; ".join(problems[:SHOWN]) + more + '. A row is {"query": text, "doc_id": '
                            'text, "clicks": number, "impressions": number}.')
        if not clicks:
            raise UserError(f"{file.id} holds no rows.")
        return clicks, shown


class _Known:
    """What may be clicked: documents and passages by id, and what a repetition repeats."""

    def __init__(self, passages: list[Passage], duplicates: Mapping[str, str]) -> None:
        self.passages = {p.id: p for p in passages}
        self.duplicates = {left: kept for left, kept in duplicates.items() if kept in self.passages}
        self.documents: dict[str, list[Passage]] = {}
        for passage in passages:
            self.documents.setdefault(passage.document, []).append(passage)

    def __contains__(self, name: str) -> bool:
        return name in self.documents or name in self.passages or name in self.duplicates

    def all_of(self, name: str) -> list[str]:
        """The ids that a click on this name makes right: itself and the passages it stands for."""
        if name in self.documents:
            return [name, *(p.id for p in self.documents[name])]
        return [name, *([self.duplicates[name]] if name in self.duplicates else [])]

    def text(self, name: str, sentences: int) -> tuple[Passage, str]:
        """The first passage that a name stands for, and the text that is encoded for it."""
        if name not in self.documents:
            passage = self.passages[self.duplicates.get(name, name)]
            return passage, passage.shown
        read = self.documents[name]
        title = read[0].headings[0] if read[0].headings else name
        said = [s for p in read[:sentences] for s in _SENTENCE.split(" ".join(p.text.split())) if s]
        return read[0], f"{title}: {' '.join(said[:sentences])}"


def _problem(row: Any, rated: bool) -> str:
    """What is wrong with a row; empty when nothing is."""
    if not isinstance(row, dict):
        return f"a {type(row).__name__}, not an object"
    for name in ("query", "doc_id"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            return f"'{name}' is {row.get(name)!r}; it must be a text"
    for name in ("clicks", "impressions"):
        value = row.get(name)
        if value is None and name == "impressions" and not rated:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            return f"'{name}' is {value!r}; it must be a whole number from 0" + \
                (" (weighting: rate divides by it)" if name == "impressions" else "")
    if row.get("impressions") is not None and row["impressions"] < row["clicks"]:
        return f"{row['clicks']} clicks in {row['impressions']} impressions"
    return ""
