"""chunk-by-structure: documents to passages of at most `max_tokens`, cut where the structure allows it.

A section is cut between its blocks (paragraphs, fenced code), a block that is too long between its sentences, or
between its lines when it is code, a list or a table, then between words, and a word that is too long between letters.
As many neighbours as fit share a passage. A passage is a slice of its section: nothing is lost, nothing said twice.

Tokens are those of the tokenizer bound to the role `tokenizer`; without one, each run of letters, digits and `_` and
each other sign counts one (`\\w+|[^\\w\\s]`).

When it helps: always; it keeps what belongs together in one passage. Source: none, a plain greedy cut.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from pydantic import Field

from luthier.core.example import Document, Passage
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._shared import fences, trim

Span = tuple[int, int]
Count = Callable[[str], int]

WORDS_AND_SIGNS = re.compile(r"\w+|[^\w\s]")
# No passage has more letters a token than this. A longer text is cut without being tokenized, which would take memory
# in proportion to a line that may be the whole file.
_LETTERS = 64
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？]\s*")
_LINED = re.compile(r"\s*(?:[-+*•|>]|\d{1,9}[.)])\s|.* \| | {4}|\t")


class ChunkByStructure(DataStep, name="chunk-by-structure", version=2):
    """Cuts sections between paragraphs, then sentences, then words, so that each passage fits the token limit."""

    roles: ClassVar[tuple[str, ...]] = ("tokenizer?",)
    max_tokens: int = Field(256, ge=16, description="most tokens in a passage")
    min_tokens: int = Field(32, ge=0, description="a shorter passage joins its neighbour in the section if both fit")

    def apply(self, rows: Iterator[Document], ctx: Ctx) -> Iterator[Passage]:
        """The passages of each document, in order."""
        tokenizer = ctx.roles.get("tokenizer")

        def count(text: str) -> int:
            if tokenizer is None:
                return sum(1 for _ in WORDS_AND_SIGNS.finditer(text))
            return len(tokenizer.encode(text, add_special_tokens=False))

        for document in rows:
            numbers: Counter[str] = Counter()
            for section in document.sections:
                slug = "/".join(_slug(h) for h in section.headings) or "top"
                name = f"{document.id}#{' / '.join(section.headings)}"
                starts = [character for character, _, _ in section.marks]
                for begin, text, tokens in self.cut(section.text, count):
                    passage = f"{document.id}#{slug}:{numbers[slug]}"
                    numbers[slug] += 1
                    mark = bisect_right(starts, begin + 1) - 1
                    _, page, line = section.marks[mark] if mark >= 0 else (0, 0, 0)
                    yield Passage(passage, text, document.id, name, section.headings, tokens, page, line)

    def cut(self, text: str, count: Count) -> list[tuple[int, str, int]]:
        """The passages of one section's text: where each begins in it, from 0, its text and its number of tokens."""
        known: dict[Span, int] = {}

        def size(a: int, b: int) -> int:
            if (a, b) not in known:
                piece = trim(text[a:b])
                known[a, b] = count(piece) if len(piece) <= _LETTERS * self.max_tokens else self.max_tokens + len(piece)
            return known[a, b]

        def fits(a: int, b: int) -> bool:
            return size(a, b) <= self.max_tokens

        joined: list[Span] = []
        for a, b in _pack(text, 0, len(text), fits, 0):
            if joined and min(size(*joined[-1]), size(a, b)) < self.min_tokens and fits(joined[-1][0], b):
                joined[-1] = (joined[-1][0], b)
            else:
                joined.append((a, b))
        whole = [(a, b, trim(text[a:b]), size(a, b)) for a, b in joined if text[a:b].strip()]
        return [(a + len(text[a:b].rstrip()) - len(piece), piece, tokens) for a, b, piece, tokens in whole]


def _slug(text: str) -> str:
    return re.sub(r"[^\w.+]+", "-", text.casefold()).strip("-") or "section"


def _pack(text: str, a: int, b: int, fits: Callable[[int, int], bool], level: int) -> Iterator[Span]:
    """Spans of text[a:b] that fit, of as many units of this level as possible; a larger unit is cut a level down."""
    starts = _UNITS[level](text, a, b)
    i, n = 0, len(starts)

    def end(unit: int) -> int:
        return starts[unit + 1] if unit + 1 < n else b

    while i < n:
        if not fits(starts[i], end(i)):
            if level + 1 < len(_UNITS) and end(i) - starts[i] > 1:
                yield from _pack(text, starts[i], end(i), fits, level + 1)
            else:
                yield starts[i], end(i)  # one letter of more tokens than the limit
            i += 1
            continue
        # How many units fit is found by doubling, then by halving: few texts are tokenized, none much above the limit.
        low, step = i, 1
        while low + step < n and fits(starts[i], end(low + step)):
            low, step = low + step, 2 * step
        high = min(low + step, n)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(starts[i], end(middle)) else (low, middle)
        yield starts[i], end(low)
        i = low + 1


def _blocks(text: str, a: int, b: int) -> list[int]:
    """Where blocks begin: after blank lines, and around fenced code, blank lines within which don't count."""
    lines = text[a:b].split("\n")
    fenced = fences(lines)
    inside = {i for first, end in fenced for i in range(first + 1, end)}
    edges = {i for first, end in fenced for i in (first, end)}
    starts, at, blank = [a], a, False
    for i, line in enumerate(lines):
        if i not in inside and line.strip() and (blank or i in edges) and at > a:
            starts.append(at)
        blank = i not in inside and not line.strip()
        at += len(line) + 1
    return starts


def _lines_or_sentences(text: str, a: int, b: int) -> list[int]:
    """Where the lines of code, a list or a table begin, or the sentences of a paragraph."""
    block = text[a:b]
    lines = block.split("\n")
    lined = sum(1 for line in lines if _LINED.match(line[:200]))
    ends = re.compile(r"\n") if fences(lines) or 2 * lined > len(lines) else _SENTENCE_END
    return [a, *(a + m.end() for m in ends.finditer(block) if m.end() < len(block))]


def _words(text: str, a: int, b: int) -> Sequence[int]:
    # An array, because a file of one line has millions of words.
    return array("q", [a]) + array("q", (a + m.end() for m in re.finditer(r"\s+", text[a:b]) if m.end() < b - a))


def _letters(text: str, a: int, b: int) -> Sequence[int]:
    return range(a, b)


_UNITS: tuple[Callable[[str, int, int], Sequence[int]], ...] = (_blocks, _lines_or_sentences, _words, _letters)
