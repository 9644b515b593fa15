"""paragraphs: passages as raw text for next-token training, without boilerplate.

A first or last line that opens or closes passages of `repeats` sections, and lines of a table of contents (dots, then a
number), are boilerplate: each is left out and named in the ledger, so the kept lines and the ledger's make the text.
Section titles stand before their text. Source: Mathav Raj et al. 2024, "Fine tuning LLM for enterprise". Seed 126.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import Field

from luthier.core.example import Dropped, Example, Part, Passage, Turn
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx

_CONTENTS = re.compile(r"^\s*\S.*(?:\.\s?){4,}\s*\d+\s*$")


class Paragraphs(DataStep, name="paragraphs", seeds=[126], version=1):
    """Raw paragraphs below their titles, to be learned as text."""

    titles: bool = Field(True, description="the path of headings stands before the text")
    repeats: int = Field(3, ge=2, description="a first or last line of passages in so many sections is boilerplate")
    min_words: int = Field(5, ge=1, description="shorter rests are left out")

    def apply(self, rows: Iterator[Passage], ctx: Ctx) -> Iterator[Example | Dropped]:
        passages = list(rows)
        boiler = repeated_edges(passages, self.repeats)
        for passage in passages:
            kept, left = clean(passage.text, boiler)
            for number, line in left:
                yield Dropped(f"{self.info.name}/{passage.id}/line-{number}", "boilerplate", line)
            if len(kept.split()) < self.min_words:
                yield Dropped(f"{self.info.name}/{passage.id}", "too short", kept)
                continue
            title = " / ".join(passage.headings) if self.titles else ""
            yield Example(f"{self.info.name}/{passage.id}",
                          (Turn("assistant", (Part(f"{title}\n{kept}" if title else kept, name="text"),), target=True),),
                          source=passage.id, cluster=passage.section, task="text",
                          meta={"generator": self.info.name, "gold": [passage.id], "headings": list(passage.headings)})


def repeated_edges(passages: list[Passage], repeats: int) -> frozenset[str]:
    """First and last lines that occur as such in passages of at least `repeats` sections."""
    where: dict[str, set[str]] = {}
    for passage in passages:
        lines = [line.strip() for line in passage.text.splitlines() if line.strip()]
        for line in {*lines[:1], *lines[-1:]} if len(lines) > 1 else ():
            where.setdefault(line, set()).add(passage.section)
    return frozenset(line for line, sections in where.items() if len(sections) >= repeats)


def clean(text: str, boiler: frozenset[str]) -> tuple[str, list[tuple[int, str]]]:
    """The text without boilerplate lines, and those lines with their numbers (from 0)."""
    lines = text.split("\n")
    said = [i for i, line in enumerate(lines) if line.strip()]
    edges = {*said[:1], *said[-1:]}
    left = [(i, line) for i, line in enumerate(lines)
            if (i in edges and line.strip() in boiler) or _CONTENTS.match(line)]
    gone = {i for i, _ in left}
    return "\n".join(line for i, line in enumerate(lines) if i not in gone), left
