"""Headings, underlined headings, code and raw blocks of Markdown."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.example import Section
from luthier.techniques.data.read_markdown import ReadMarkdown

PAGE = """\
---
title: "The page"
tags: [a]
---
Before any heading.

# One #
Text of one.

## Two {#anchor}

```python
# no heading
x = 1

## nor this
```

Three
===
Below three.

Four
----
- item
---
> quote
---

| a | b |
|---|---|

## C#
sharp
"""


def parse(text: str) -> list[tuple[tuple[str, ...], str]]:
    return [(s.headings, s.text) for s in ReadMarkdown().parse(text)[1]]


def test_page():
    title, sections = ReadMarkdown().parse(PAGE)
    assert title == "The page"
    lines = PAGE.split("\n")
    for section in sections:
        assert section.marks
        for character, page, line in section.marks:
            assert page == 0 and section.text[character - 1:].split("\n")[0] == lines[line - 1]
    assert tuple(replace(s, marks=()) for s in sections) == (
        Section((), "Before any heading."),
        Section(("One",), "Text of one."),
        Section(("One", "Two"), "```python\n# no heading\nx = 1\n\n## nor this\n```"),
        Section(("Three",), "Below three."),
        Section(("Three", "Four"), "- item\n---\n> quote\n---\n\n| a | b |\n|---|---|"),
        Section(("Three", "C#"), "sharp"),
    )


@pytest.mark.parametrize(("text", "expected"), [
    ("#hashtag", [((), "#hashtag")]),
    ("    # indented code", [((), "    # indented code")]),
    ("#\nx", [((), "#\nx")]),
    ("####### seven", [((), "####### seven")]),
    ("two\nlines\n---\nx", [(("two lines",), "x")]),
    ("text\n- item\n---\nx", [((), "text\n- item\n---\nx")]),
    ("\n---\nx", [((), "---\nx")]),
    ("<!--\n# hidden\n-->\nx", [((), "<!--\n# hidden\n-->\nx")]),
    ("<pre>\n# kept\n</pre>\n# H\nx", [((), "<pre>\n# kept\n</pre>"), (("H",), "x")]),
    ("<pre>\n# H\nx", [((), "<pre>"), (("H",), "x")]),
    ("---\nnot: closed\n# H\nx", [((), "---\nnot: closed"), (("H",), "x")]),
    ("---\nkey: value\n---\nx", [((), "x")]),
    ("---\nprose here, without a key\n\n---\nx", [((), "---\nprose here, without a key\n\n---\nx")]),
    ("# A\n### B\nx\n## C\ny", [(("A", "B"), "x"), (("A", "C"), "y")]),
    ("~~~\n# a\n```\n~~~\n# H\nx", [((), "~~~\n# a\n```\n~~~"), (("H",), "x")]),
])
def test_cases(text, expected):
    assert parse(text) == expected


def test_a_heading_with_nothing_below_is_text():
    assert parse("# Hours\n## Open at nine\n## Closed on Sunday\n") == [
        (("Hours", "Open at nine"), "Open at nine"), (("Hours", "Closed on Sunday"), "Closed on Sunday")]


def test_repeated_headings_stay_apart():
    assert parse("# A\n## Example\nx\n## Example\ny") == [(("A", "Example"), "x"), (("A", "Example"), "y")]


@pytest.mark.parametrize("text", ["# " + " " * 200_000 + "x", "<pre>\n" * 50_000, "`" * 300_000, "> " * 100_000])
def test_no_text_takes_long(text):
    began = time.monotonic()
    parse(text)
    assert time.monotonic() - began < 2


LINES = st.lists(st.sampled_from([
    "# A", "## B", "### C ##", "text", "more text", "", "---", "===", "```", "~~~", "    code", "- item", "> q",
    "<pre>", "</pre>", "<!-- x", "-->", "| a | b |", "#", "1. one", "    ```", "title: x", "word {#id}",
]), max_size=25)


@given(LINES)
def test_every_word_is_in_a_section_or_a_heading(lines):
    text = "\n".join(["start", *lines])  # no front matter
    sections = ReadMarkdown().parse(text)[1]
    found = " ".join(s.text for s in sections) + " " + " ".join(h for s in sections for h in s.headings)
    for word in ("text", "more", "code", "item", "| a | b |", "one", "word"):
        assert (word in found) == (word in text)


@given(LINES)
def test_code_is_never_a_heading(lines):
    block = "\n".join(line for line in lines if not line.strip().startswith(("```", "~~~")))
    sections = ReadMarkdown().parse(f"# Top\n````\n{block}\n````")[1]
    assert [s.headings for s in sections] == [("Top",)]
    assert sections[0].text == f"````\n{block}\n````"


def test_reader(read):
    document = read(ReadMarkdown(), "# The title\r\nline\r\n", "a.md")
    assert document.id == "a.md" and document.title == "The title"
    assert document.sections == (Section(("The title",), "line", ((1, 0, 2),)),)
    assert ReadMarkdown.suffixes == (".md", ".markdown")
