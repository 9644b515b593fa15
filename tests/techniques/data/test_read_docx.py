"""Word documents made by hand: headings, tables, notes, equations, and files that are no good."""

import random
import time

import pytest

from luthier.core.example import Document, Dropped, Section
from luthier.techniques.data.chunk_by_structure import ChunkByStructure
from luthier.techniques.data.read_docx import ReadDocx
from tests.techniques.data.office import WORD, bullet, damaged_inside, docx, docx_parts, p, table, zipped
from tests.techniques.data.test_read_pdf import damaged

NOTE = '<w:r><w:footnoteReference w:id="2"/></w:r>'
SQUARE = ("<m:oMath><m:sSup><m:e><m:r><m:t>x</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup></m:sSup></m:oMath>")
PICTURE = ('<w:r><w:drawing><wp:inline xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing">'
           '<wp:docPr id="1" descr="Picture 1"/><a:graphic xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main">'
           '<a:graphicData><pic:pic xmlns:pic="http://schemas.openxmlformats.org/drawingml/2006/picture"><pic:blipFill>'
           '<a:blip r:{}="r9"/></pic:blipFill></pic:pic></a:graphicData></a:graphic></wp:inline></w:drawing></w:r>')
IMAGE = ('<Relationship Id="r9" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/image" {}/>'
         "</Relationships>")
BODY = (p("On lutes", "Title") + p("Wood", "heading 1") + p("Spruce_is_resonant, wörd 木.", inside=NOTE) + bullet("one")
        + bullet("two") + p("Sizes", "heading 2") + p("Said first.") + table(("a", "b"), ("1 &lt; 2", "2"))
        + p("x = 1", "Source Code") + p("  y = 2", "Source Code") + p("Area ", inside=SQUARE) + p("End."))


def test_document(read, log):
    row = read(ReadDocx(), docx(BODY, note="Most_of it."), "a.docx")
    assert isinstance(row, Document) and row.title == "On lutes" and not log
    assert row.sections == (
        Section(("Wood",), "Spruce_is_resonant, wörd 木. (Most_of it.)\n\n- one\n- two", ((1, 0, 3), (44, 0, 4), (50, 0, 5))),
        Section(("Wood", "Sizes"), "Said first.\n\na | b\n1 < 2 | 2\n\n```\nx = 1\n  y = 2\n```\n\nArea $x^{2}$\n\nEnd.",
                ((1, 0, 7), (14, 0, 8), (31, 0, 10), (54, 0, 11), (68, 0, 12))))


def test_passages_name_the_paragraph(read, ctx):
    lines = [f"Paragraph {word} of the document. " + "filler words here " * 4 for word in ("alpha", "beta", "gamma")]
    row = read(ReadDocx(), docx("".join(map(p, lines))), "a.docx")
    passages = list(ChunkByStructure(max_tokens=20, min_tokens=0).apply(iter([row]), ctx))
    assert {passage.line for passage in passages} == {1, 2, 3}
    assert [passage.place for passage in passages if "gamma" in passage.text] == ["a.docx, line 3"]


def test_title_is_the_paragraph_then_the_property_then_the_heading(read):
    assert read(ReadDocx(), docx(BODY, note="n", title="Property"), "a.docx").title == "On lutes"
    untitled = p("Wood", "heading 1") + p("text")
    assert read(ReadDocx(), docx(untitled, title="Property"), "a.docx").title == "Property"
    assert read(ReadDocx(), docx(untitled), "a.docx").title == "Wood"
    assert read(ReadDocx(), docx(p("text")), "a.docx").title == "a.docx"


def test_deleted_text_is_gone_and_pictures_are_counted(read, log):
    deleted = '<w:del><w:r><w:delText>gone</w:delText></w:r></w:del>'
    parts = docx_parts(p("kept", inside=deleted + PICTURE.format("embed")))
    parts |= {"word/media/1.png": "x", "word/_rels/document.xml.rels": str(parts["word/_rels/document.xml.rels"]).replace(
        "</Relationships>", IMAGE.format('Target="media/1.png"'))}
    row = read(ReadDocx(), zipped(parts), "a.docx")
    assert [s.text for s in row.sections] == ["kept"] and log == ["a.docx: 1 pictures left out"]
    parts["word/document.xml"] = str(parts["word/document.xml"]).replace("kept", "")
    row = read(ReadDocx(), zipped(parts), "scan.docx")
    assert row == Dropped("scan.docx", "no text layer", row.detail) and "1 pictures" in row.detail


def test_a_linked_picture_is_not_opened(read, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("password")
    parts = docx_parts(p("kept", inside=PICTURE.format("link")))
    parts["word/_rels/document.xml.rels"] = str(parts["word/_rels/document.xml.rels"]).replace(
        "</Relationships>", IMAGE.format(f'Target="file://{secret}" TargetMode="External"'))
    row = read(ReadDocx(), zipped(parts), "a.docx")
    assert [s.text for s in row.sections] == ["kept"]


BOMB = f'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "{"&a;" * 10}">]>'


@pytest.mark.parametrize(("content", "reason"), [
    (b"", "empty"), (b"no zip", "damaged"), (zipped({"a.txt": "x"}), "damaged"), (docx(""), "empty"),
    (docx(BODY)[:-400], "damaged"),
    (bytes.fromhex("d0cf11e0a1b11ae1") + b"Word.Document.8", "damaged"),
    (bytes.fromhex("d0cf11e0a1b11ae1") + "EncryptedPackage".encode("utf-16-le"), "encrypted"),
    (zipped({**docx_parts(BODY), "word/document.xml": f"{BOMB}<w:document {WORD}><w:body>{p('&b;')}</w:body></w:document>"}),
     "unsafe"),
    (zipped({**docx_parts(BODY), "other.bin": f"{BOMB}<a/>".encode("utf-16")}), "unsafe"),
    (zipped({**docx_parts(BODY), "../../evil.txt": "x"}), "unsafe"), (zipped({**docx_parts(BODY), "/etc/x": "x"}), "unsafe"),
    (zipped({**docx_parts(BODY), "word/media/x.bin": bytes(60_000_000)}), "too large"),
    (zipped({**docx_parts(BODY), **{f"x{n}": "" for n in range(10_001)}}), "too large"),
    (zipped(docx_parts(BODY), compression=14), "damaged"),
])
def test_named_and_skipped(read, content, reason):
    row = read(ReadDocx(), content, "bad.docx")
    assert isinstance(row, Dropped) and row.reason == reason and row.detail, row


def test_sizes_that_lie_yield_no_more_than_they_say(read):
    """A directory that states 100 bytes for a part that unpacks to 60 MB."""
    data = zipped({**docx_parts(BODY), "word/document.xml": b" " * 60_000_000})
    row = read(ReadDocx(), data.replace((60_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little")), "bad.docx")
    assert isinstance(row, Dropped) and row.reason == "damaged"


def test_missing_libraries_are_named(monkeypatch):
    monkeypatch.setattr("luthier.techniques.data._zipped.find_spec", lambda name: None)
    assert ReadDocx().missing(".docx") == "pip install 'luthier[office]'"


@pytest.mark.parametrize("files", [30, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_never_fail(read, files):
    rng = random.Random(files)
    whole = docx(BODY, note="A note.", title="T")
    for number in range(files):
        began = time.monotonic()
        bad = damaged(whole, rng) if number % 2 else damaged_inside(whole, rng, damaged)
        row = read(ReadDocx(), bad, "a.docx")
        assert isinstance(row, Document | Dropped) and time.monotonic() - began < 10
