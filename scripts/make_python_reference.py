"""Write the Python language reference as Markdown pages, frozen and reproducible.

CPython ships its language reference inside the standard library: `pydoc_data.topics.topics` maps a topic name to
plain text that Sphinx rendered from reStructuredText. This script turns that text back into Markdown, one page a topic:

    python3.11 scripts/make_python_reference.py examples/python-reference

What changes is the layout only; the words stay.

- An underlined title becomes a `#` heading; a level deeper in the source is a level deeper in Markdown.
- Text that was hard-wrapped is joined into one line a paragraph, and runs of blanks become one blank, so that a
  quotation never depends on where a line broke.
- Grammar, examples and tables become fenced code blocks, byte for byte apart from their indentation.
- A described object (`str.zfill(width)` and the indented text below it) becomes a sub-heading where nothing but such
  objects follows in its section. Elsewhere a heading would swallow the running text that comes after, so
  the signature is fenced and its text follows.

Topics overlap: the page on compound statements repeats the whole page on `try`. **A block that several topics share is
kept in the shortest of them**, because the shortest text is the one written about just that. On equal length the
topic whose name stands in its own title wins, then the alphabet. A block under 60 characters ("For example:") says
nothing by itself; it goes only if the section of the same title keeps it elsewhere. A heading left without text goes
too, and so does a page. A footnote that only another topic cites stays with that other topic.
"""

import argparse
import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

MINOR_VERSION = (3, 11)
SHORT = 60  # characters; shorter blocks are too common to be told apart by their text alone

UNDERLINES = "*=-~"  # from the title of a page to its third level of sections
LIST_MARKER = re.compile(r"(\*|\d+\.|\[\d+\]) +(?=\S)")
INDENTED_PROSE = re.compile(r"\* |\"__\w+__\"$")  # a list, or the name of a special attribute and its meaning
ADMONITIONS = ("Note:", "Warning:", "See also:")
FOOTNOTE_MARK = re.compile(r" ?\[\d+\]")


@dataclass
class Block:
    """One heading, paragraph, code block or signature, with its place in nested lists.

    `level` is the depth of a heading (1 is the page title). `prefix` is what its first line starts with
    ("  * "); later lines start with as many blanks. `described` marks the text below a signature.
    """

    kind: str  # "heading", "text", "code", "signature" or "rule"
    text: str
    level: int = 0
    prefix: str = ""
    described: bool = False

    def render(self) -> str:
        if self.kind == "heading":
            return "#" * self.level + " " + self.text
        if self.kind == "rule":
            return "---"
        lines = self.text.split("\n")
        if self.kind != "text":
            lines = ["```", *lines, "```"]
        blanks = " " * len(self.prefix)
        return "\n".join((self.prefix + lines[0], *((blanks + line).rstrip() for line in lines[1:])))


# ---- reading the rendered text ------------------------------------------------------------------------------------


def indent_of(line: str) -> int:
    return len(line) - len(line.lstrip())


def dedent(lines: list[str]) -> list[str]:
    """Remove the indentation all lines share, and the blank lines around them."""
    margin = min(indent_of(line) for line in lines if line.strip())
    return "\n".join(line[margin:].rstrip() for line in lines).strip("\n").split("\n")


def take_indented(lines: list[str], start: int) -> int:
    """The end of the run of indented or blank lines that begins at `start`."""
    end = start
    while end < len(lines) and (not lines[end].strip() or indent_of(lines[end])):
        end += 1
    return end


def unwrap(lines: list[str]) -> str:
    """Join hard-wrapped lines. Wrapping also broke after hyphens inside words; there no blank was lost."""
    text = lines[0].strip()
    for line in lines[1:]:
        inside_word = re.search(r"[A-Za-z]-$", text) and line.strip()[0].isalpha()
        text += ("" if inside_word else " ") + line.strip()
    return re.sub(r"  +", " ", text)


def is_underline(line: str, title: str) -> bool:
    return len(line) >= 3 and line[0] in UNDERLINES and set(line) == {line[0]} and len(line) == len(title)


def is_signature(paragraph: list[str], body: list[str]) -> bool:
    """Tell a described object from a paragraph before an example: no closing stop, and prose below it."""
    starts_as_prose = re.match(r'[A-Z][a-z]*\b|"', body[0].strip()) and "::=" not in body[0]
    return bool(starts_as_prose) and not paragraph[-1].rstrip().endswith((".", ":", ",", ";"))


def parse(lines: list[str]) -> list[Block]:
    """The blocks of a text whose own indentation is zero; what is nested in it is parsed by recursion."""
    blocks: list[Block] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip():
            at += 1
        elif at + 1 < len(lines) and is_underline(lines[at + 1], line):
            blocks.append(Block("heading", line.strip(), level=UNDERLINES.index(lines[at + 1][0]) + 1))
            at += 2
        elif line == "-[ Footnotes ]-":
            blocks.append(Block("heading", "Footnotes", level=2))
            at += 1
        elif set(line) == {"="} and len(line) > 60:
            blocks.append(Block("rule", line))
            at += 1
        elif indent_of(line):
            end = take_indented(lines, at)
            inner = dedent(lines[at:end])
            blocks += parse(inner) if INDENTED_PROSE.match(inner[0]) else [Block("code", "\n".join(inner))]
            at = end
        elif line.startswith(("+--", ">>>")):
            end = next(i for i in range(at, len(lines) + 1) if i == len(lines) or not lines[i].strip())
            blocks.append(Block("code", "\n".join(lines[at:end])))
            at = end
        elif marker := LIST_MARKER.match(line):
            end = take_indented(lines, at + 1)
            # Numbers of different width share one indentation, so a wrapped line tells it better than the marker.
            is_wrapped = at + 1 < end and lines[at + 1].strip()
            margin = indent_of(lines[at + 1]) if is_wrapped else marker.end()
            item = [" " * margin + line[marker.end() :], *lines[at + 1 : end]]
            blocks += nest(parse(dedent(item)), marker.group())
            at = end
        else:
            at = parse_paragraph(lines, at, blocks)
    return blocks


def parse_paragraph(lines: list[str], start: int, blocks: list[Block]) -> int:
    """Read a paragraph, or the line that opens a definition, an admonition or a described object; return its end."""
    at = start + 1
    while at < len(lines) and lines[at].strip() and not indent_of(lines[at]):
        at += 1
    paragraph = lines[start:at]
    end = take_indented(lines, at)
    nested = [line for line in lines[at:end] if line.strip()]

    if nested and lines[at].strip():  # indented without a blank line: a term and its definition
        term = Block("text", unwrap(paragraph))
        blocks += nest([term, *parse(dedent(lines[at:end]))], "* ")
        return end
    if nested and paragraph[-1] in ADMONITIONS:
        body = parse(dedent(lines[at:end]))
        if body[0].kind == "text" and not body[0].prefix:
            body[0].text = paragraph[-1] + " " + body[0].text
        else:
            body.insert(0, Block("text", paragraph[-1]))
        blocks += body
        return end
    if nested and is_signature(paragraph, nested):
        blocks.append(Block("signature", "\n".join(paragraph)))
        body = parse(dedent(lines[at:end]))
        for block in body:
            block.described = True
        blocks += body
        return end
    blocks.append(Block("text", unwrap(paragraph)))
    return at


def nest(blocks: list[Block], marker: str) -> list[Block]:
    """Put blocks into a list item: the marker before the first, blanks before the others."""
    # A footnote mark opens no list in Markdown, and what is indented below it would be read as code.
    is_markdown = not marker.startswith("[")
    for number, block in enumerate(blocks):
        block.prefix = (marker if number == 0 else " " * len(marker) * is_markdown) + block.prefix
    return blocks


def split_sections(blocks: list[Block]) -> list[list[Block]]:
    """Cut before each heading."""
    sections: list[list[Block]] = [[]]
    for block in blocks:
        if block.kind == "heading" and sections[-1]:
            sections.append([])
        sections[-1].append(block)
    return sections


def raise_signatures(blocks: list[Block]) -> list[Block]:
    """Turn described objects into sub-headings in the sections that end with them."""
    raised = []
    for section in split_sections(blocks):
        opens = [block.kind == "signature" and not block.described for block in section]
        first = opens.index(True) if True in opens else len(section)
        if not all(is_open or block.described for is_open, block in zip(opens[first:], section[first:], strict=True)):
            first = len(section)  # running text follows: leave the signatures fenced
        raised += section[:first]
        for is_open, block in zip(opens[first:], section[first:], strict=True):
            if is_open:
                names = block.text.split("\n")
                raised.append(Block("heading", names[0], level=section[0].level + 1))
            if not is_open or len(names) > 1:
                raised.append(block)
    return raised


# ---- keeping shared text once -------------------------------------------------------------------------------------


def by_ownership(topics: dict[str, str]) -> list[str]:
    """Topic names, the first owner of shared text first: shortest, then named in its own title, then the alphabet."""

    def rank(topic: str) -> tuple:
        title = topics[topic].split("\n", 1)[0]
        return len(topics[topic]), topic not in re.findall(r"\w+", title), topic

    return sorted(topics, key=rank)


def drop_borrowed_footnotes(pages: dict[str, list[Block]]) -> dict[str, list[Block]]:
    """Drop footnotes that only another page cites: a topic inherits those of the whole chapter it was cut from."""

    def mark_of(block: Block) -> str:
        return block.prefix.strip() if block.prefix.startswith("[") else ""

    texts = {topic: " ".join(block.text for block in blocks if not mark_of(block)) for topic, blocks in pages.items()}
    cited = {
        block.text
        for topic, blocks in pages.items()
        for block in blocks
        if mark_of(block) and mark_of(block) in texts[topic]
    }
    kept: dict[str, list[Block]] = {topic: [] for topic in pages}
    for topic, blocks in pages.items():
        is_borrowed = False
        for block in blocks:
            if block.kind == "heading":
                is_borrowed = False
            elif mark_of(block):  # the blocks after it, up to the next mark, belong to it
                is_borrowed = block.text in cited and mark_of(block) not in texts[topic]
            if not is_borrowed:
                kept[topic].append(block)
    return kept


def drop_shared(pages: dict[str, list[Block]]) -> dict[str, list[Block]]:
    """Keep each block in the first page that has it. Repetitions inside one page stay: there they serve the reader."""
    taken: set[object] = set()
    kept = {}
    for topic, blocks in pages.items():
        kept[topic], seen_here, title = [], set(), ""
        for block in blocks:
            if block.kind == "heading":
                title = block.text
                kept[topic].append(block)
                continue
            # Footnotes are numbered by page, so their marks differ between copies of one paragraph.
            words = block.text if block.kind == "code" else FOOTNOTE_MARK.sub("", block.text)
            key = words if len(words) >= SHORT else (title, words)
            if key not in taken:
                kept[topic].append(block)
            seen_here.add(key)
        taken |= seen_here
        kept[topic] = drop_empty_headings(kept[topic])
    return {topic: blocks for topic, blocks in kept.items() if blocks}


def drop_empty_headings(blocks: list[Block]) -> list[Block]:
    """Drop headings with no text before the next heading of their own or a higher level."""
    kept: list[Block] = []
    open_level = 0  # depth of the headings that the text below still needs
    for block in reversed(blocks):
        if block.kind == "rule" and not kept:
            continue
        if block.kind != "heading":
            open_level = len(UNDERLINES) + 2
        elif block.level >= open_level:
            continue
        else:
            open_level = block.level
        kept.append(block)
    return kept[::-1]


# ---- writing ------------------------------------------------------------------------------------------------------

README = """\
# The Python language reference as a corpus

{pages} Markdown pages in `pages/`, {kilobytes} kB: the language reference of CPython {version}, as shipped in the
standard library (`pydoc_data.topics`, what `help("yield")` prints in a terminal). It is here as a small, real, freely licensed
collection of documents, with questions written by hand.

| | |
|---|---|
| origin | CPython {version}, module `pydoc_data.topics` |
| copyright | Python Software Foundation, under the licence in [LICENSE.PSF.txt](LICENSE.PSF.txt) |
| changes | layout only, see below |
| topics | {topics} |
| sha256 of the topics | `{digest}` |

## How it was made

```
python3.11 scripts/make_python_reference.py examples/python-reference
```

The same topics give the same bytes. Titles became `#` headings; hard-wrapped lines became one line a
paragraph with single blanks; grammar, examples and tables became fenced code. A described object such as
`str.zfill(width)` became a sub-heading where only such objects follow in its section, and a fenced signature elsewhere.
The words are untouched: straight double quotes around code ("yield") and asterisks around terms (*iterator*) stand as
`pydoc` prints them.

Topics overlap. A block that several topics share is kept in the shortest of them (on equal length, in the topic
whose name stands in its own title, then the first of the alphabet); a block under {short} characters goes only if a
section of the same title keeps it elsewhere. A footnote that only another topic cites stays with that topic. Headings
and pages left without text are not written; these topics were left without a page: {dropped_names}.

## The questions

`questions.jsonl` holds test questions, written and checked by hand, one JSON object a line:

- `set`: `known` (its section may be trained on), `unseen` (its section is held out of training) or `unanswerable`
  (no page answers it; `checked` says what was searched for). No section is in both of the first two sets.
- `answers`: short answers, the first one preferred; `quote`: the sentence that supports them, exactly as in the page;
  `page` and `section`: the file and the path of headings that hold the quote. A quote occurs in one section only.
"""


def digest(topics: dict[str, str]) -> str:
    """The sha256 of all topics, independent of the order in which the module lists them."""
    text = "".join(f"{topic}\0{topics[topic]}\0" for topic in sorted(topics))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def make_pages(topics: dict[str, str]) -> dict[str, str]:
    """Markdown by file name."""
    parsed = {topic: raise_signatures(parse(topics[topic].split("\n"))) for topic in by_ownership(topics)}
    kept = drop_shared(drop_borrowed_footnotes(parsed))
    return {f"{topic}.md": "\n\n".join(block.render() for block in kept[topic]) + "\n" for topic in sorted(kept)}


def find_license() -> Path | None:
    """The licence file of the running Python, in the places where `site` looks for it."""
    library = Path(os.__file__).parent
    candidates = [folder / name for folder in (library.parent, library) for name in ("LICENSE.txt", "LICENSE")]
    return next((path for path in candidates if path.is_file()), None)


def write(folder: Path) -> dict[str, str]:
    """Write pages, licence and README into `folder` and return the pages; other files there are left alone."""
    if sys.version_info[:2] != MINOR_VERSION:
        wanted, found = (".".join(map(str, version[:2])) for version in (MINOR_VERSION, sys.version_info))
        raise SystemExit(f"This Python is {found}; the pages are those of {wanted}. Run: python{wanted} {sys.argv[0]}")
    license_file = find_license()
    if license_file is None:
        raise SystemExit("No licence file beside the standard library; the pages may not be copied without it.")

    from pydoc_data.topics import topics  # private to CPython, so imported only once the version is known

    pages = make_pages(topics)
    dropped = sorted(topic for topic in topics if f"{topic}.md" not in pages)
    readme = README.format(
        pages=len(pages),
        kilobytes=round(sum(len(page.encode("utf-8")) for page in pages.values()) / 1000),
        version=".".join(map(str, sys.version_info[:3])),
        topics=len(topics),
        digest=digest(topics),
        short=SHORT,
        dropped_names=", ".join(f"`{name}`" for name in dropped) or "none",
    )
    # The pages have a folder of their own: whoever reads it as documents must not read the questions too.
    (folder / "pages").mkdir(parents=True, exist_ok=True)
    for name, text in {**{f"pages/{name}": page for name, page in pages.items()}, "README.md": readme}.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    (folder / "LICENSE.PSF.txt").write_bytes(license_file.read_bytes())
    return pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where to write, for example examples/python-reference")
    pages = write(parser.parse_args().folder)
    print(f"{len(pages)} pages, {sum(len(page.encode('utf-8')) for page in pages.values())} bytes")


if __name__ == "__main__":
    main()
