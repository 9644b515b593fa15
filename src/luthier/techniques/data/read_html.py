"""read-html: HTML pages as sections below their path of headings.

h1 to h6 open sections; scripts, styles and navigation are left out; `pre` becomes fenced code; a table becomes rows
"a | b"; list items become lines "- item". A table that holds headings, lists, code or tables is layout and is walked
through. The encoding is the page's mark, UTF-8, or the one that its `meta` names.

Where a page marks questions and answers (schema.org's FAQPage, QAPage), a question opens a section of its own, whatever its
element; answers that the page does not show stand at the end. `read-faq` makes examples of them.

When it helps: exported wikis and generated manuals. Source: HTML Living Standard, sections 4.3, 4.4 and 4.9; schema.org.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from luthier.core.example import Section, SourceFile
from luthier.core.step import Ctx
from luthier.techniques.data import _faq
from luthier.techniques.data._shared import NotRead, Outline, Reader

_DROPPED = ("script", "style", "nav", "noscript", "template", "svg", "iframe", "title")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_INLINE = frozenset({
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i",
    "ins", "kbd", "label", "mark", "math", "output", "q", "rp", "rt", "ruby", "s", "samp", "small", "span",
    "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr",
})


_QUESTION = 7  # the level of a question that is marked: below h6
_SIGNS = re.compile(r"\W+")


class ReadHtml(Reader, name="read-html", version=3):
    """HTML as sections below their path of headings; tables as rows, code kept, navigation left out."""

    suffixes: ClassVar[tuple[str, ...]] = (".html", ".htm")

    def declared(self, data: bytes) -> str:
        """The encoding of the page's `meta` or XML declaration."""
        from bs4.dammit import EncodingDetector

        return EncodingDetector.find_declared_encoding(data, is_html=True) or ""

    def parse(self, text: str) -> tuple[str, tuple[Section, ...]]:
        """Title and sections of a page."""
        return _parsed(text)[:2]

    def parse_named(self, file: SourceFile, text: str, ctx: Ctx) -> tuple[str, tuple[Section, ...]]:
        """Title and sections; the log says what markup of questions can't be read."""
        title, sections, broken = _parsed(text)
        for line, why in broken:
            ctx.log(f"{file.id}, line {line}: {why}; its questions are left out")
        return title, sections


def _parsed(text: str) -> tuple[str, tuple[Section, ...], list[tuple[int, str]]]:
    soup = soup_of(text)
    title = _flat(soup.title.get_text()) if soup.title else ""
    pairs, broken = _faq.pairs(soup) if _faq.marked(text) else ([], [])
    said = texts(pairs)
    walk = _Walk({_flat(question) for question, _, _ in said})
    walk.through(soup)
    shown = _SIGNS.sub("", "".join("".join((*s.headings, s.text)) for s in walk.outline.sections())) if said else ""
    for question, answer, line in said:
        if not all(_SIGNS.sub("", part) in shown for part in (question, answer)):
            walk.outline.heading(1, _flat(question), line)
            for row in answer.split("\n"):
                walk.outline.line(row, line)
    return title or walk.outline.first(), walk.outline.sections(), broken


def soup_of(text: str) -> Any:
    """A page as its tree of elements. Raises NotRead."""
    from bs4 import BeautifulSoup, ParserRejectedMarkup

    try:
        return BeautifulSoup(text, "html.parser")
    except (ParserRejectedMarkup, AssertionError) as error:
        raise NotRead("unreadable", f"no HTML: {error}") from None


def plain(html: str) -> str:
    """The text of a piece of HTML, its headings among it."""
    walk = _Walk()
    walk.through(soup_of(html))
    return "\n\n".join(part for s in walk.outline.sections()
                       for part in (*s.headings[-1:], *([s.text] if s.text not in s.headings else [])))


def _flat(text: str) -> str:
    return " ".join(text.split())


def _letters(node: Any) -> int:
    """How many characters a node says, without white space."""
    return sum(map(len, node.get_text().split()))


def texts(pairs: Sequence[_faq.Pair]) -> list[tuple[str, str, int]]:
    """Question and answer of each pair as text, and its line; what stands in many pairs is read once."""
    known: dict[str, str] = {}
    for html in (html for pair in pairs for html in pair[:2]):
        if html not in known:
            known[html] = plain(html)
    return [(known[pair.question], known[pair.answer], pair.line) for pair in pairs]


class _Walk:
    """Goes through a page with a stack of its own, so that no depth of nesting can exhaust Python's."""

    def __init__(self, questions: set[str] | frozenset[str] = frozenset()) -> None:
        self.questions = questions  # what opens a section though it is no heading
        self.outline = Outline()
        self.inline: list[str] = []
        self.item = False  # the open text is a list item's first
        self.tight = False  # the last block was a list item
        self.at = 0  # line of the last tag that began
        self.begins = 0  # line on which the open inline text begins

    def through(self, soup: Any) -> None:
        """Fill the outline from a page."""
        from bs4.element import NavigableString, PreformattedString, Tag

        stack: list[Any] = [soup]
        while stack:
            node = stack.pop()
            if node is None:
                self.flush()
                self.item = False
            elif isinstance(node, NavigableString):
                if not isinstance(node, PreformattedString):  # comments, declarations
                    if not self.begins and node.strip():
                        self.begins = self.at + node[:len(node) - len(node.lstrip())].count("\n")
                    self.inline.append(re.sub(r"\s+", " ", node))
            elif isinstance(node, Tag) and node.name not in _DROPPED:
                self.at = node.sourceline or self.at
                if node.name == "br":
                    self.inline.append("\n")
                elif node.name in _INLINE:
                    stack.extend(reversed(node.contents))
                else:
                    self.flush()
                    if not self.whole(node):
                        self.item = self.item or node.name == "li"
                        stack.append(None)
                        stack.extend(reversed(node.contents))
        self.flush()

    def whole(self, node: Any) -> bool:
        """Take a heading, a listing or a table in one piece; False for anything that must be walked through."""
        if node.name in _HEADINGS:
            text = _flat(node.get_text(" " if node.find("br") else ""))
            if text:
                self.outline.heading(int(node.name[1]), text.removesuffix("¶").rstrip(), node.sourceline or 0)
        elif node.name == "pre":
            for line_end in node.find_all("br"):
                line_end.replace_with("\n")
            code = node.get_text().strip("\n")
            longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
            if code.strip():
                fence = "`" * (longest + 1)
                self.block(f"{fence}\n{code}\n{fence}", line=node.sourceline or 0)
        elif node.name == "table" and not node.find(["table", "pre", "ul", "ol", *_HEADINGS]):
            cells = [row.find_all(["td", "th"]) for row in node.find_all("tr")]
            # Cells that were never closed lie within each other here.
            if not cells or node.select_one("td td, td th, th td, th th, tr tr"):
                return False
            # Text that stands in the table but in no cell would be lost.
            parts = [cell for row in cells for cell in row] + ([node.caption] if node.caption else [])
            if _letters(node) != sum(map(_letters, parts)):
                return False
            rows = [[_flat(cell.get_text(" ")) for cell in row] for row in cells]
            caption = _flat(node.caption.get_text()) if node.caption else ""
            lines = [" | ".join(row) for row in rows if any(row)]
            self.block("\n".join([*([caption] if caption else []), *lines]), line=node.sourceline or 0)
        else:
            return False
        return True

    def flush(self) -> None:
        """Close the paragraph of inline text that is open."""
        lines = [_flat(line) for line in "".join(self.inline).split("\n")]
        self.inline.clear()
        begins, self.begins = self.begins, 0
        text = "\n".join(line for line in lines if line)
        if _flat(text) in self.questions:
            self.outline.heading(_QUESTION, _flat(text), begins)
        elif text:
            item, self.item = self.item, False
            self.block(f"- {text}" if item else text, item, begins)

    def block(self, text: str, item: bool = False, line: int = 0) -> None:
        """Add a block: items of a list follow each other directly, all else is set apart by a blank line."""
        if text:
            if not (item and self.tight):
                self.outline.line("")
            self.outline.line(text, line)
            self.tight = item
