"""read-pdf: the text of PDF files, page by page, with the page and the line of everything.

Headings are the entries of the file's outline, placed at the line of their page that says the same; without an outline,
short lines set larger than most of the text, a level for each size. Lines at the top or bottom edge that repeat on more
than half of the pages (of all, of the odd or of the even ones), the same or with a number that counts along, are left out
and counted. A word broken by a hyphen at a line's end is joined, unless the file writes it with the hyphen elsewhere. The
cells of a table's row stay on one line.

When it helps: reports, papers and manuals that have a text layer. Source: ISO 32000-1, sections 9.4 and 12.3.3.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.example import Document, Dropped, Section, SourceFile
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._child import parse_in_child
from luthier.techniques.data._shared import NotRead, Outline, read_bytes

_EDGE = 2  # lines at each edge of a page that may be running ones
_FEWEST_PAGES = 3
_LARGER, _LONGEST, _LEVELS = 1.15, 120, 6
_MEASURED = 4  # letters of a line whose height is looked at
_LEADERS = re.compile(r"(\s?\.){5,}\s*(\d{1,5}|[ivxlc]{1,7})\s*$")  # "The base  . . . . . . . 12"
_HYPHENS = ("\x02", "\ufffe")
_NUMBER = re.compile(r"\d{1,6}")
_BROKEN = re.compile(r"([^\W\d_]+)[-\u00ad]$")
_REST = re.compile(r"\s*([^\W\d_]+)(\S*)\s*")

Heading = tuple[int, str, int]  # level, text, page


class ReadPdf(DataStep, name="read-pdf", version=3):
    """PDF as sections below their headings, with pages and lines; without running headers, footers and tables of contents."""

    suffixes: ClassVar[tuple[str, ...]] = (".pdf",)
    max_megabytes: float = Field(50.0, gt=0, description="a larger file is left out, in 1 000 000 bytes")
    max_seconds: float = Field(8.0, gt=0, description="a file that takes longer is left out")
    max_memory_megabytes: float = Field(1024.0, ge=128, description="a file that takes more to parse is left out")

    def apply(self, rows: Iterator[SourceFile], ctx: Ctx) -> Iterator[Document | Dropped]:
        """One `Document` or one `Dropped` a file, in order."""
        for file in rows:
            try:
                data = read_bytes(file, self.max_megabytes)
                found = parse_in_child(f"{__name__}:pages", file.path, self.max_seconds, self.max_memory_megabytes)
                pages, running = without_running(found["pages"])
                pages, contents = without_contents(pages)
                for count, what in ((running, "running headers, footers and page numbers"), (contents, "lines of contents")):
                    if count:
                        ctx.log(f"{file.id}: {count} {what} left out")
                sections = _outlined(pages, found["headings"])
            except NotRead as why:
                yield Dropped(file.id, why.reason, why.detail)
                continue
            title = found["title"] or next((text for _, text, _ in found["headings"]), "") or Path(file.id).name
            yield Document(file.id, title, sections, hashlib.sha256(data).hexdigest()[:32])


def pages(path: str) -> dict[str, Any]:
    """Title, headings and the lines of each page, as PDFium reads them. Raises NotRead."""
    import pypdfium2
    from pypdfium2 import raw

    try:
        file = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
            raise NotRead("encrypted", "it opens with a password only; save a copy without one") from None
        raise
    sizes: list[list[float]] = []
    weights: Counter[float] = Counter()
    made = []
    for page in file:
        text = page.get_textpage()
        lines = list(_lines(text.get_text_range()))
        made.append([line for _, line in lines])
        sizes.append(_sizes(text, lines, weights))
        text.close()
        page.close()
    if not any(line.strip() for page in made for line in page):
        raise NotRead("no text layer", f"{len(made)} pages without text, scanned most likely; recognise its text first, "
                                       "for instance with ocrmypdf")
    title = str(file.get_metadata_value("Title"))
    return {"title": " ".join(title.split()), "pages": made,
            "headings": _from_outline(file) or _from_sizes(made, sizes, weights)}


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Where each line begins, and the line. PDFium writes one mark for a hyphen and the end of the line behind it."""
    at = 0
    for match in re.finditer(r"\r?\n|[\x02\ufffe]|\Z", text):
        yield at, text[at:match.start()] + "-" * (match[0] in _HYPHENS)
        at = match.end()


def _sizes(text: Any, lines: Sequence[tuple[int, str]], weights: Counter[float]) -> list[float]:
    """The height in which each line is set, by its first letters; how many letters each height has goes to `weights`."""
    found, count = [], text.count_chars()
    for start, line in lines:
        letters = [start + n for n, letter in enumerate(line) if not letter.isspace() and start + n < count][:_MEASURED]
        boxes = [text.get_charbox(i, loose=True) for i in letters]
        found.append(max((round(abs(top - bottom), 1) for _, bottom, _, top in boxes), default=0.0))
        weights[found[-1]] += len("".join(line.split()))
    return found


def _from_outline(file: Any) -> list[Heading]:
    """The outline's entries in their order. One that leads nowhere in the file is passed over."""
    found: list[Heading] = []
    for entry in file.get_toc():
        target, text = entry.get_dest(), " ".join(entry.get_title().split())
        page = target.get_index() if target else None
        if page is not None and text:
            found.append((entry.level + 1, text, page + 1))
    return found


def _from_sizes(made: Sequence[Sequence[str]], sizes: Sequence[Sequence[float]], weights: Counter[float]) -> list[Heading]:
    """Short lines set larger than the size of most letters."""
    body = weights.most_common(1)[0][0] if weights else 0.0
    found = [(size, bare, number) for number, (lines, heights) in enumerate(zip(made, sizes, strict=True), 1)
             for line, size in zip(lines, heights, strict=True)
             if (bare := " ".join(line.split())) and len(bare) <= _LONGEST and size > _LARGER * body]
    order = sorted({size for size, _, _ in found}, reverse=True)
    return [(min(order.index(size) + 1, _LEVELS), text, page) for size, text, page in found]


def without_running(made: Sequence[Sequence[str]]) -> tuple[list[list[str]], int]:
    """The pages with their running lines emptied, and how many lines these were."""
    keys: list[dict[int, set[tuple[int, str]]]] = []
    for number, lines in enumerate(made):
        full = [i for i, line in enumerate(lines) if line.strip()]
        edges = [*enumerate(full[:_EDGE]), *((-1 - n, i) for n, i in enumerate(reversed(full[-_EDGE:])))]
        keys.append({})
        for place, i in edges:
            keys[-1].setdefault(i, set()).update((place, form) for form in _forms(lines[i], number))
    running: set[tuple[int, int]] = set()
    for start, step in ((0, 1), (0, 2), (1, 2)):
        group = range(start, len(made), step)
        counts = Counter(key for p in group for key in set().union(*keys[p].values()))
        often = {key for key, n in counts.items() if n >= _FEWEST_PAGES and 2 * n > len(group)}
        running |= {(p, i) for p in group for i, forms in keys[p].items() if forms & often}
    kept = [["" if (p, i) in running else line for i, line in enumerate(lines)] for p, lines in enumerate(made)]
    if not any(line.strip() for lines in kept for line in lines):
        return [list(lines) for lines in made], 0  # every page says the same: that is its text
    return kept, len(running)


def without_contents(made: Sequence[Sequence[str]]) -> tuple[list[list[str]], int]:
    """The pages with the lines of tables of contents emptied, and how many: dots that lead to a page's number.

    They hold every heading's words and no answer, so a search finds them before the sections themselves.
    """
    found = {(p, i) for p, lines in enumerate(made) for i, line in enumerate(lines) if _LEADERS.search(line)}
    kept = [["" if (p, i) in found else line for i, line in enumerate(lines)] for p, lines in enumerate(made)]
    if not any(line.strip() for lines in kept for line in lines):
        return [list(lines) for lines in made], 0  # a table of contents is all there is
    return kept, len(found)


def _forms(line: str, page: int) -> set[str]:
    """The line, and the line with each of its numbers told from the page's: equal forms repeat or count along."""
    flat = " ".join(line.split())
    return {flat, *(f"{flat[:m.start()]}\0{int(m[0]) - page}\0{flat[m.end():]}" for m in _NUMBER.finditer(flat))}


def joined(lines: Sequence[str], text: str) -> list[str]:
    """Lines with words that a hyphen broke put together on the first; `text` (casefolded) tells compounds apart."""
    made = list(lines)
    for i in range(len(made) - 1):
        head, rest = _BROKEN.search(made[i].rstrip()), _REST.match(made[i + 1])
        if not head or not rest or not rest[1][0].islower():
            continue
        compound = f"{head[1]}-{rest[1]}".casefold() in text
        made[i] = f"{made[i].rstrip()[:head.end(1)]}{'-' if compound else ''}{rest[1]}{rest[2]}"
        made[i + 1] = made[i + 1][rest.end():]
    return made


def _outlined(made: Sequence[Sequence[str]], headings: Sequence[Heading]) -> tuple[Section, ...]:
    """Sections of the pages' lines below the headings. Raises NotRead."""
    outline = Outline()
    text = "\n".join(line for lines in made for line in lines).casefold()
    for page, lines in enumerate(made, 1):
        waiting = [(level, heading) for level, heading, at in headings if at == page]
        here = {" ".join(line.split()).casefold() for line in lines}
        for number, line in enumerate(joined(lines, text), 1):
            # What the page nowhere says in a line of its own stands at the page's top.
            while waiting and waiting[0][1].casefold() not in here:
                outline.heading(*waiting.pop(0), number, page)
            if waiting and " ".join(line.split()).casefold() == waiting[0][1].casefold():
                outline.heading(*waiting.pop(0), number, page)
            else:
                outline.line(line.rstrip(), number, page)
        for level, heading in waiting:
            outline.heading(level, heading, len(lines), page)
    sections = outline.sections()
    if not sections:
        raise NotRead("empty", "no text in it")
    return sections
