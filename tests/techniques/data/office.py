"""Word, PowerPoint and EPUB files written part by part, so that what is in them is known."""

from __future__ import annotations

import io
import random
import re
import zipfile
from collections.abc import Callable, Sequence

WORD = ('xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" '
        'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships" '
        'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"')
_TYPES = ('<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
          '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
          '<Default Extension="xml" ContentType="application/xml"/>{}</Types>')
_RELS = '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{}</Relationships>'
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
STYLES = ("Title", "heading 1", "heading 2", "Source Code")


def zipped(parts: dict[str, bytes | str], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A container of these parts, in this order, the same bytes every time."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as packed:
        for name, content in parts.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = compression
            packed.writestr(entry, content)
    return made.getvalue()


def p(text: str = "", style: str = "", inside: str = "") -> str:
    """A paragraph; `style` is one of STYLES, `inside` further XML behind the text."""
    said = f'<w:pPr><w:pStyle w:val="{style.replace(" ", "")}"/></w:pPr>' if style else ""
    return f'<w:p>{said}<w:r><w:t xml:space="preserve">{text}</w:t></w:r>{inside}</w:p>'


def bullet(text: str) -> str:
    """An item of the document's list."""
    return f'<w:p><w:pPr><w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'


def table(*rows: tuple[str, ...]) -> str:
    """A table of one paragraph a cell."""
    cells = ["".join(f"<w:tc>{p(cell)}</w:tc>" for cell in row) for row in rows]
    return f"<w:tbl>{''.join(f'<w:tr>{row}</w:tr>' for row in cells)}</w:tbl>"


def docx_parts(body: str, note: str = "", title: str = "") -> dict[str, bytes | str]:
    """The parts of a document with this body; `note` is its footnote 2, `title` stands in its properties."""
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml"
    styles = "".join(f'<w:style w:type="paragraph" w:styleId="{s.replace(" ", "")}"><w:name w:val="{s}"/></w:style>'
                     for s in STYLES)
    links = [("styles", "styles.xml"), ("numbering", "numbering.xml"), *([("footnotes", "footnotes.xml")] if note else [])]
    parts: dict[str, bytes | str] = {
        "[Content_Types].xml": _TYPES.format(
            f'<Override PartName="/word/document.xml" ContentType="{kind}.document.main+xml"/>'),
        "_rels/.rels": _RELS.format(f'<Relationship Id="a" Type="{_OFFICE}/officeDocument" Target="word/document.xml"/>'),
        "word/document.xml": f"<w:document {WORD}><w:body>{body}</w:body></w:document>",
        "word/_rels/document.xml.rels": _RELS.format("".join(
            f'<Relationship Id="r{n}" Type="{_OFFICE}/{what}" Target="{target}"/>' for n, (what, target) in enumerate(links))),
        "word/styles.xml": f"<w:styles {WORD}>{styles}</w:styles>",
        "word/numbering.xml": f'<w:numbering {WORD}><w:abstractNum w:abstractNumId="0"><w:lvl w:ilvl="0"><w:numFmt '
                              'w:val="bullet"/></w:lvl></w:abstractNum><w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>'
                              "</w:numbering>",
    }
    if note:
        parts["word/footnotes.xml"] = f'<w:footnotes {WORD}><w:footnote w:id="2">{p(note)}</w:footnote></w:footnotes>'
    if title:
        parts["docProps/core.xml"] = ('<cp:coreProperties xmlns:cp="http://schemas.openxmlformats.org/package/2006/metadata/'
                                      'core-properties" xmlns:dc="http://purl.org/dc/elements/1.1/">'
                                      f"<dc:title>{title}</dc:title></cp:coreProperties>")
    return parts


def docx(body: str, note: str = "", title: str = "") -> bytes:
    """A Word document."""
    return zipped(docx_parts(body, note, title))


def epub_parts(chapters: list[str], names: Sequence[str] = (), title: str = "A book", ncx: bool = False
               ) -> dict[str, bytes | str]:
    """The parts of a book whose files are these bodies; `names` are the entries of its table of contents."""
    page = '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops"><head><title>x</title></head>'
    files = {f"text/part {n}.xhtml": f"{page}<body>{body}</body></html>" for n, body in enumerate(chapters, 1)}
    if ncx:
        points = "".join(f'<navPoint id="n{n}"><navLabel><text>{name}</text></navLabel>'
                         f'<content src="text/part%20{n}.xhtml#top"/></navPoint>' for n, name in enumerate(names, 1))
        toc = ('<!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN" "http://www.daisy.org/z3986/2005/ncx-2005-1.dtd">'
               f'<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>{points}</navMap></ncx>')
        contents, item = "toc.ncx", '<item id="toc" href="toc.ncx" media-type="application/x-dtbncx+xml"/>'
    else:
        points = "".join(f'<li><a href="text/part%20{n}.xhtml">{name}</a></li>' for n, name in enumerate(names, 1))
        toc = f'{page}<body><nav epub:type="toc"><ol>{points}</ol></nav></body></html>'
        contents, item = "nav.xhtml", ('<item id="toc" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>')
    listed = "".join(f'<item id="c{n}" href="text/part%20{n}.xhtml" media-type="application/xhtml+xml"/>'
                     for n in range(1, len(files) + 1))
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(1, len(files) + 1))
    return {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile '
                                  'full-path="OEBPS/book.opf"/></rootfiles></container>',
        "OEBPS/book.opf": '<package xmlns="http://www.idpf.org/2007/opf"><metadata '
                          f'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{title}</dc:title></metadata>'
                          f"<manifest>{item}{listed}</manifest><spine>{spine}</spine></package>",
        f"OEBPS/{contents}": toc, **{f"OEBPS/{name}": text for name, text in files.items()},
    }


def epub(chapters: list[str], names: Sequence[str] = (), title: str = "A book", ncx: bool = False) -> bytes:
    """An EPUB book."""
    return zipped(epub_parts(chapters, names, title, ncx))


def damaged_inside(data: bytes, rng: random.Random, damaged: Callable[[bytes, random.Random], bytes]) -> bytes:
    """A container with one of its parts damaged, whole in itself, so that what parses the part is reached.

    Half of them get other values for some attributes, so that what comes after the XML is reached too.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        parts: dict[str, bytes | str] = {name: packed.read(name) for name in packed.namelist()}
    name = rng.choice(list(parts))
    part = parts[name]
    assert isinstance(part, bytes)
    values = re.findall(rb'"[^"]*"', part)
    if not part or not values or rng.random() < 0.5:
        parts[name] = damaged(part, rng) if part else b""
        return zipped(parts)
    share = rng.choice((0.02, 0.2))
    parts[name] = re.sub(rb'"[^"]*"', lambda m: rng.choice((b'""', b'"-1"', b'"99999999999999"', b'"x"', rng.choice(values)))
                         if rng.random() < share else m[0], part)
    return zipped(parts)
