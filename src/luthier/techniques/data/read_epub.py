"""read-epub: EPUB books as sections below their headings, chapter after chapter in the order in which they are read.

A chapter is a file of the book's spine, read as `read-html` reads a page; one without a heading gets its name from the
table of contents. The format has no pages of its own: the page is the chapter's number in the spine, the line that of its
file. Chapters under a password (DRM) make the book "encrypted"; fonts that are only obfuscated don't.

When it helps: manuals and books. Source: EPUB 3.3, sections 4 to 7; EPUB 2.0.1 for `toc.ncx`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element
from zipfile import ZipFile

from luthier.core.example import Section
from luthier.techniques.data._shared import NotRead, decode
from luthier.techniques.data._zipped import ZippedReader, container, found, tree
from luthier.techniques.data.read_html import ReadHtml

_CONTAINER, _LOCKS = "META-INF/container.xml", "META-INF/encryption.xml"
_PAGES = ("application/xhtml+xml", "text/html")
_NCX = "application/x-dtbncx+xml"


class ReadEpub(ZippedReader, name="read-epub"):
    """EPUB as sections below chapters and headings; the page is the chapter's number."""

    suffixes: ClassVar[tuple[str, ...]] = (".epub",)

    @property
    def call(self) -> str:
        """Where it is parsed."""
        return f"{__name__}:parsed"


def parsed(path: str) -> dict[str, Any]:
    """Title, sections and log of the book at `path`. Raises NotRead."""
    with container(path) as packed:
        if _CONTAINER not in packed.namelist():
            raise NotRead("damaged", f"no {_CONTAINER}; it is no EPUB, or was cut off")
        root = next((e.get("full-path", "") for e in _all(tree(packed.read(_CONTAINER)), "rootfile")), "")
        book = tree(_part(packed, root))
        folder = posixpath.dirname(root)
        items = {e.get("id", ""): e for e in _all(book, "item")}
        paths = {name: _path(folder, e.get("href", "")) for name, e in items.items()}
        spine = [e.get("idref", "") for e in _all(book, "itemref")]
        locked = _locked(packed)
        log: list[str] = []
        names = _names(packed, items, paths, log)
        sections: list[Section] = []
        for number, item in enumerate(spine, 1):
            if item not in items:
                raise NotRead("damaged", f"its chapter {number} is not in its list of files; save it anew")
            if items[item].get("media-type") not in _PAGES:
                continue  # a drawing or a picture as a page
            if paths[item] in locked:
                raise NotRead("encrypted", f"its chapter {number} is under a password; save a copy without one")
            sections += _chapter(_part(packed, paths[item]), number, names.get(paths[item], ""))
    title = next((e.text or "" for e in _all(book, "title")), "")
    pictures = sum((e.get("media-type") or "").startswith("image/") for e in items.values())
    return found(title, sections, log, pictures)


def _all(top: Element, name: str) -> Iterator[Element]:
    """Elements of a name in any namespace, in order."""
    return (e for e in top.iter() if isinstance(e.tag, str) and e.tag.rpartition("}")[2] == name)


def _path(folder: str, link: str) -> str:
    """The entry that a link in a file of `folder` leads to; its place within the file is left out."""
    return posixpath.normpath(posixpath.join(folder, unquote(urlsplit(link).path)))


def _part(packed: ZipFile, name: str) -> bytes:
    try:
        return packed.read(name)
    except KeyError:
        raise NotRead("damaged", f"its part {name[:80] or 'without a name'} is not there; save it anew") from None


def _locked(packed: ZipFile) -> set[str]:
    """The entries that are encrypted, or obfuscated."""
    if _LOCKS not in packed.namelist():
        return set()
    return {_path("", e.get("URI", "")) for e in _all(tree(packed.read(_LOCKS)), "CipherReference")}


def _names(packed: ZipFile, items: dict[str, Element], paths: dict[str, str], log: list[str]) -> dict[str, str]:
    """The name of each file in the table of contents: the first entry that leads to it."""
    made: dict[str, str] = {}
    for item_id, item in items.items():
        read = _nav if "nav" in (item.get("properties") or "").split() else _ncx if item.get("media-type") == _NCX else None
        if read is None:
            continue
        try:
            entries = read(_part(packed, paths[item_id]))
        except NotRead as why:
            if why.reason != "damaged":
                raise
            log.append(f"its table of contents can't be read ({why.detail}); chapters without a heading have no name")
            continue
        for link, text in entries:
            if text.strip():
                made.setdefault(_path(posixpath.dirname(paths[item_id]), link), " ".join(text.split()))
    return made


def _nav(data: bytes) -> list[tuple[str, str]]:
    """(link, text) of a table of contents as EPUB 3 has it."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(decode(data)[0], "html.parser")
    contents = soup.find("nav", attrs={"epub:type": "toc"}) or soup
    return [(str(a["href"]), a.get_text(" ")) for a in contents.find_all("a", href=True)]


def _ncx(data: bytes) -> list[tuple[str, str]]:
    """(link, text) of a table of contents as EPUB 2 has it."""
    return [(next((c.get("src", "") for c in _all(e, "content")), ""), next((t.text or "" for t in _all(e, "text")), ""))
            for e in _all(tree(data), "navPoint")]


def _chapter(data: bytes, number: int, name: str) -> list[Section]:
    """The sections of one file, its number as their page."""
    page = ReadHtml()
    text, _ = decode(data, page.declared(data))
    sections = page.parse(text)[1]
    unnamed = name and not any(s.headings for s in sections)
    return [replace(s, headings=(name,) if unnamed else s.headings, marks=tuple((c, number, n) for c, _, n in s.marks))
            for s in sections]
