"""read-docx: Word documents as sections below their headings, by mammoth.

Heading styles open sections, tables become rows "a | b", list items lines "- item", paragraphs of code fenced code. A footnote
stands in brackets where its mark was. Equations are LaTeX between dollar signs (by markitdown, which also mends styles).
Headers, footers, comments and deleted text are left out; pictures and what is not understood are counted. The format has no
pages: a line is a paragraph, a list item or a table's row, counted from the top. mammoth's HTML goes through `read-html`
and not through Markdown, whose escapes would change names such as `snake_case`.

When it helps: reports, minutes, policies. Source: ECMA-376-1, section 17. Needs `pip install 'luthier[office]'`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, ClassVar

from luthier.techniques.data._shared import NotRead
from luthier.techniques.data._zipped import ZippedReader, container, found, refuse_entities, tree
from luthier.techniques.data.read_html import ReadHtml

_BREAK = "\u2028"  # between the lines of one listing; no other line end is in the HTML
_STYLES = f"""
p[style-name='Title'] => h1.title:fresh
p[style-name='HTML Preformatted'] => pre:separator('{_BREAK}')
p[style-name='Source Code'] => pre:separator('{_BREAK}')
p[style-name='Code'] => pre:separator('{_BREAK}')
"""
_TITLE = re.compile(r'<h1 class="title">(.*?)</h1>')
_BLOCK = re.compile(r"<(/?)(table|tr|p|h[1-6]|li|pre)\b")
_UNKNOWN = re.compile(r"An unrecognised element was ignored: (?:\{.*\}|\w+:)?(\w+)")
_CORE = "docProps/core.xml"
_DC_TITLE = "{http://purl.org/dc/elements/1.1/}title"


class ReadDocx(ZippedReader, name="read-docx"):
    """DOCX as sections below their headings; tables as rows, footnotes in place, equations as LaTeX."""

    suffixes: ClassVar[tuple[str, ...]] = (".docx",)
    modules: ClassVar[tuple[str, ...]] = ("mammoth", "markitdown")

    @property
    def call(self) -> str:
        """Where it is parsed."""
        return f"{__name__}:parsed"


def prepare() -> None:
    """Import what takes a second or more to start."""
    import mammoth  # noqa: F401
    import markitdown.converter_utils.docx.pre_process  # noqa: F401


def parsed(path: str) -> dict[str, Any]:
    """Title, sections and log of the document at `path`. Raises NotRead."""
    import mammoth
    from markitdown.converter_utils.docx.pre_process import pre_process_docx

    pictures = []

    def left_out(picture: Any) -> list[Any]:
        pictures.append(picture)
        return []

    with container(path) as packed:
        refuse_entities(packed)
        if not any(name.startswith("word/") for name in packed.namelist()):
            raise NotRead("damaged", "no text document in it; save it anew")
        named = tree(packed.read(_CORE)).findtext(_DC_TITLE) if _CORE in packed.namelist() else ""
    with open(path, "rb") as file:
        made = mammoth.convert_to_html(pre_process_docx(file), style_map=_STYLES, include_embedded_style_map=False,
                                       convert_image=left_out, external_file_access=False)
    unknown = Counter(m[1] for said in made.messages if (m := _UNKNOWN.match(said.message)))
    html = _with_notes(made.value.replace("\n", " ").replace(_BREAK, "<br />"))
    # Only the first becomes the page's title, which is no part of the text.
    title, sections = ReadHtml().parse(_numbered(_TITLE.sub(r"<title>\1</title>", html, count=1)))
    return found(title if _TITLE.search(html) else named or title, sections,
                 [f"{n} elements '{name}' left out" for name, n in unknown.items()], len(pictures))


def _with_notes(html: str) -> str:
    """The HTML with each footnote in brackets in place of its mark."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    for note in soup.select('li[id^="footnote-"], li[id^="endnote-"]'):
        kind, _, number = str(note["id"]).rpartition("-")
        mark = soup.find(id=f"{kind}-ref-{number}")
        if mark is None:
            continue
        text = " ".join(note.get_text(" ").replace("↑", "").split())
        mark.replace_with(f" ({text})" if text else "")
        note.decompose()
    return str(soup)


def _numbered(html: str) -> str:
    """The HTML with a line for each paragraph, list item and row of a table, for lines are what `read-html` counts."""
    depth, rows = 0, 0

    def begun(match: re.Match[str]) -> str:
        nonlocal depth, rows
        closing, name = match[1], match[2]
        if name == "table":
            depth += -1 if closing else 1
            rows = 0
            return match[0] if closing or depth > 1 else f"\n{match[0]}"
        if closing or depth > 1 or (depth and name != "tr"):
            return match[0]
        rows += 1
        return match[0] if depth and rows == 1 else f"\n{match[0]}"

    return _BLOCK.sub(begun, html).lstrip("\n")
