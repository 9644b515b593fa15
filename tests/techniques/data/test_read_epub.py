"""Books made by hand: chapters, names, and files that are no good."""

import random
import time

import pytest

from luthier.core.example import Document, Dropped, Section
from luthier.techniques.data.read_epub import ReadEpub
from tests.techniques.data.office import damaged_inside, epub, epub_parts, zipped
from tests.techniques.data.test_read_pdf import damaged

CHAPTERS = ["<h1>Wood</h1>\n<p>Spruce rings, wörd.</p>\n<h2>Sizes</h2><table><tr><td>a</td><td>b</td></tr></table>",
            "\n<p>Unnamed 木.</p>", "<h1>Wood</h1><p>Again.</p>"]
NAMES = ["Not used", "Glue &amp; pegs"]


@pytest.mark.parametrize("ncx", [False, True])
def test_book(read, ncx):
    row = read(ReadEpub(), epub(CHAPTERS, NAMES, "On lutes", ncx), "a.epub")
    assert isinstance(row, Document) and row.title == "On lutes"
    assert row.sections == (
        Section(("Wood",), "Spruce rings, wörd.", ((1, 1, 2),)), Section(("Wood", "Sizes"), "a | b", ((1, 1, 3),)),
        Section(("Glue & pegs",), "Unnamed 木.", ((1, 2, 2),)), Section(("Wood",), "Again.", ((1, 3, 1),)))


def test_a_broken_table_of_contents_is_said(read, log):
    parts = epub_parts(CHAPTERS, NAMES, ncx=True)
    parts["OEBPS/toc.ncx"] = "<ncx><navMap>"
    row = read(ReadEpub(), zipped(parts), "a.epub")
    assert [s.headings for s in row.sections][2] == () and "table of contents can't be read" in log[0]


def locked(name: str) -> str:
    return ('<encryption><EncryptedData xmlns="http://www.w3.org/2001/04/xmlenc#"><CipherData><CipherReference '
            f'URI="{name}"/></CipherData></EncryptedData></encryption>')


def changed(**parts: str | None) -> bytes:
    """A book with some parts replaced, or taken away."""
    made = {**epub_parts(CHAPTERS, NAMES), **{name.replace("__", "/"): part for name, part in parts.items()}}
    return zipped({name: part for name, part in made.items() if part is not None})


@pytest.mark.parametrize(("content", "reason"), [
    (b"", "empty"), (b"no zip", "damaged"), (zipped({"a.txt": "x"}), "damaged"), (epub([]), "empty"),
    (epub(["<p> </p>"]), "empty"),
    (changed(**{"META-INF__encryption.xml": locked("OEBPS/text/part%202.xhtml")}), "encrypted"),
    (changed(**{"OEBPS__book.opf": "<package>"}), "damaged"), (changed(**{"OEBPS__book.opf": None}), "damaged"),
    (changed(**{"OEBPS__text__part 2.xhtml": None}), "damaged"),
    (changed(**{"OEBPS__book.opf": '<!DOCTYPE x [<!ENTITY a "ha">]><package>&a;</package>'}), "unsafe"),
    (changed(**{"META-INF__container.xml": '<c><rootfile full-path="../../etc/passwd"/></c>'}), "damaged"),
])
def test_named_and_skipped(read, content, reason):
    row = read(ReadEpub(), content, "bad.epub")
    assert isinstance(row, Dropped) and row.reason == reason and row.detail, row


def test_obfuscated_fonts_are_no_password(read):
    row = read(ReadEpub(), changed(**{"META-INF__encryption.xml": locked("OEBPS/font.otf")}), "a.epub")
    assert isinstance(row, Document)


def test_pages_that_are_pictures_have_no_text_layer(read):
    parts = epub_parts(["<img src='1.png'/>"])
    picture = '<manifest><item id="p" href="1.png" media-type="image/png"/>'
    parts["OEBPS/book.opf"] = str(parts["OEBPS/book.opf"]).replace("<manifest>", picture)
    assert read(ReadEpub(), zipped(parts), "a.epub").reason == "no text layer"


@pytest.mark.parametrize("files", [60, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_never_fail(read, files):
    rng = random.Random(files)
    wholes = [epub(CHAPTERS, NAMES), epub(CHAPTERS, NAMES, ncx=True)]
    for number in range(files):
        began = time.monotonic()
        whole = wholes[number % 2]
        bad = damaged(whole, rng) if number % 4 < 2 else damaged_inside(whole, rng, damaged)
        row = read(ReadEpub(), bad, "a.epub")
        assert isinstance(row, Document | Dropped) and time.monotonic() - began < 10
