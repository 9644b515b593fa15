"""read-markdown: Markdown files as sections below their path of headings.

Headings with `#` and underlined ones open sections. Fenced code, HTML comments and raw `<pre>`, `<script>`, `<style>`
blocks are passed on untouched, so that a `# comment` in them is never taken for a heading. A front matter between `---`
lines is left out; its `title` names the document.

When it helps: the usual form of technical documents. Source: CommonMark 0.31, sections 4.2, 4.3, 4.5 and 4.6.
"""

from __future__ import annotations

import re
from typing import ClassVar

from luthier.core.example import Section
from luthier.techniques.data._shared import Outline, Reader, fences

_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(.+)")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*")
# What starts a block in which an underline makes no heading: list, quote, table, raw HTML; indented code.
_OTHER = re.compile(r" {0,3}(?:(?:[-+*]|\d{1,9}[.)])(?:\s|$)|[>|<])")
_INDENTED = re.compile(r" {4}| {0,3}\t")
_RAW = re.compile(r" {0,3}(?:<(pre|script|style|textarea)(?=[\s>]|$)|<!--)", re.IGNORECASE)
_ATTRIBUTES = re.compile(r"\{[#.][^{}]*\}$")


class ReadMarkdown(Reader, name="read-markdown", version=2):
    """Markdown as sections below their path of headings; code is never split and never a heading."""

    suffixes: ClassVar[tuple[str, ...]] = (".md", ".markdown")

    def parse(self, text: str) -> tuple[str, tuple[Section, ...]]:
        """Title and sections of a Markdown text."""
        lines = text.split("\n")
        title, start = _front_matter(lines)
        lines = lines[start:]
        ends = dict(fences(lines))
        outline = Outline()
        paragraph: list[str] = []  # lines that an underline would make a heading
        plain = True  # whether the block began as a paragraph
        hopeless: set[str] = set()
        i = 0

        def settle() -> None:
            for back, line in enumerate(paragraph):
                outline.line(line, start + i - len(paragraph) + back + 1)
            paragraph.clear()

        while i < len(lines):
            line = lines[i]
            end = ends.get(i) or _raw_end(lines, i, hopeless)
            if end:
                settle()
                for number, inner in enumerate(lines[i:end], start + i + 1):
                    outline.line(inner, number)
                i, plain = end, True
                continue
            heading = _ATX.match(line)
            if heading and (name := _closed(heading[2])):
                settle()
                outline.heading(len(heading[1]), name, start + i + 1)
                plain = True
            elif not line.strip():
                settle()
                outline.line("")
                plain = True
            elif paragraph and (under := _UNDERLINE.fullmatch(line)):
                outline.heading(1 if under[1][0] == "=" else 2, _clean(" ".join(p.strip() for p in paragraph)),
                                start + i - len(paragraph) + 1)
                paragraph.clear()
            elif plain and not _OTHER.match(line) and (paragraph or not _INDENTED.match(line)):
                paragraph.append(line)
            else:
                settle()
                plain = False
                outline.line(line, start + i + 1)
            i += 1
        settle()
        return title or outline.first(), outline.sections()


def _clean(text: str) -> str:
    """A heading without the attributes that some dialects add (`{#anchor}`)."""
    return _ATTRIBUTES.sub("", text.strip()).rstrip()


def _closed(text: str) -> str:
    """A `#` heading without the `#`s that may close it."""
    text = text.strip()
    bare = text.rstrip("#")
    return _clean(bare if not bare or bare[-1].isspace() else text)


def _front_matter(lines: list[str]) -> tuple[str, int]:
    """Title and number of the lines of a YAML front matter."""
    if lines[0].rstrip() != "---":
        return "", 0
    for i, line in enumerate(lines[1:], 1):
        if line.rstrip() in ("---", "..."):
            found = (re.fullmatch(r"title:\s*(.+?)\s*", inner) for inner in lines[1:i])
            return next((m[1].strip("'\"") for m in found if m), ""), i + 1
        if line.strip() and not re.match(r"[\w.-]+\s*:|\s|- |#", line):
            break  # prose: the `---` was a rule
    return "", 0


def _raw_end(lines: list[str], start: int, hopeless: set[str]) -> int | None:
    """Line after a raw HTML block that begins at `start`; None when none does, or when it has no end.

    `hopeless` remembers the ends that don't come any more, so that no text makes this quadratic.
    """
    match = _RAW.match(lines[start])
    closing = "" if not match else f"</{match[1]}>".lower() if match[1] else "-->"
    if not closing or closing in hopeless:
        return None
    end = next((i + 1 for i in range(start, len(lines)) if closing in lines[i].lower()), None)
    if end is None:
        hopeless.add(closing)
    return end
