"""read-faq: the questions and answers that a page marks for search engines, as examples.

An example a pair of schema.org's FAQPage or QAPage, from JSON-LD, microdata or RDFa. The answer is text, its HTML read as
`read-html` reads a page; the questions are their authors', so they can be trained on, and tested with those of others.
JSON-LD that is broken is a row that can't be used: the page is refused, or with `bad_rows: drop` goes on without.

When it helps: help centres and FAQ pages. Source: schema.org; Dinzinger et al. 2025, WebFAQ (arXiv 2502.20936).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import SourceFile
from luthier.techniques.data import _faq
from luthier.techniques.data._files import Found, open_bytes
from luthier.techniques.data._rows import RowReader
from luthier.techniques.data._shared import MEGABYTE, NotRead, decode
from luthier.techniques.data.read_html import ReadHtml, soup_of, texts


class ReadFaq(RowReader, name="read-faq"):
    """Examples from the marked questions and answers of an HTML page."""

    suffixes: ClassVar[tuple[str, ...]] = ReadHtml.suffixes
    max_megabytes: float = Field(50.0, gt=0, description="a larger file is refused, in 1 000 000 bytes")

    def rows(self, file: SourceFile) -> Iterator[Found]:
        """A row a pair, then one for each JSON-LD that can't be read."""
        limit = int(self.max_megabytes * MEGABYTE)
        with open_bytes(Path(file.path)) as opened:
            data = opened.read(limit + 1)
        if len(data) > limit:
            raise UserError(f"{file.path} is too large; max_megabytes is {self.max_megabytes:g}.")
        try:
            text, _ = decode(data, ReadHtml().declared(data))
            pairs, broken = _faq.pairs(soup_of(text))
            made = texts(pairs)
        except NotRead as why:
            raise UserError(f"{file.path} can't be read: {why.reason}{f' ({why.detail})' if why.detail else ''}.") from None
        number = 0
        for question, answer, line in made:
            if question and answer:
                number += 1
                yield Found(number, {"question": " ".join(question.split()), "answer": answer}, line=line)
        for line, problem in broken:
            number += 1
            yield Found(number, None, f"row {number} (line {line}): {problem}", line)

    def expected(self) -> str:
        """What such a page has."""
        return "Expected: questions and answers marked as schema.org's FAQPage or QAPage (JSON-LD, microdata, RDFa)."
