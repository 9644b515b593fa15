"""read-text: plain text and reStructuredText as sections below underlined headings.

A heading is a line after a blank one, underlined by one repeated sign at least as long as itself, with or without the
same line above it. As in reStructuredText, each style of underline is one level deeper than those seen before it.
Everything else is passed on as it stands.

When it helps: notes and older manuals. Source: the reStructuredText specification, "Sections".
"""

from __future__ import annotations

import re
from typing import ClassVar

from luthier.core.example import Section
from luthier.techniques.data._shared import Outline, Reader

_RULE = re.compile(r"([=\-~^\"'*+#.:_`<>])\1{2,}\s*")


class ReadText(Reader, name="read-text", version=2):
    """Plain text as sections below underlined headings; without headings, one section."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".rst")

    def parse(self, text: str) -> tuple[str, tuple[Section, ...]]:
        """Title and sections of a plain text."""
        lines = text.split("\n")
        outline, i = Outline(), 0
        styles: list[str] = []
        fresh = True  # nothing stands directly above
        while i < len(lines):
            found = _heading(lines, i) if fresh else None
            if found:
                title, style, size = found
                if style not in styles:
                    styles.append(style)
                outline.heading(styles.index(style) + 1, title, i + 1)
                i += size
            else:
                outline.line(lines[i], i + 1)
                # Directly below other text it would be a table's head or a paragraph above a rule.
                fresh = not lines[i].strip()
                i += 1
        return outline.first(), outline.sections()


def _heading(lines: list[str], i: int) -> tuple[str, str, int] | None:
    """Text, style and number of lines of a heading that begins at line `i`."""
    over = _RULE.fullmatch(lines[i])
    at = i + 1 if over else i
    if at + 1 >= len(lines):
        return None
    title, under = lines[at].rstrip(), _RULE.fullmatch(lines[at + 1])
    if not under or not title.strip() or _RULE.fullmatch(title):
        return None
    if over[1] != under[1] if over else title[0].isspace():
        return None
    if len(lines[at + 1].rstrip()) < len(title.strip()):
        return None
    return title.strip(), ("over" if over else "") + under[1], at + 2 - i
