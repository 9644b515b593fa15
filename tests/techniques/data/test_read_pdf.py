"""Pages, headings, running lines and broken words of PDF files made by hand, and files that are no good."""

import random
import time

import pytest

from luthier.core.example import Document, Dropped
from luthier.techniques.data import read_pdf
from luthier.techniques.data._child import parse_in_child
from luthier.techniques.data._shared import NotRead
from luthier.techniques.data.chunk_by_structure import ChunkByStructure
from luthier.techniques.data.read_pdf import ReadPdf
from tests.techniques.data.pdfs import pdf

BODY = [(10, f"A sentence of ordinary size, number {word}.") for word in ("one", "two", "three", "four")]
PAPER = [
    [(10, "Journal of Lutes"), (20, "Wood"), *BODY[:2], (10, "Page 1 of 3")],
    [(10, "Journal of Lutes"), (10, "Spruce is resonant and exam-"), (10, "ples are well-"), (10, "known. A well-known case."),
     (10, "Page 2 of 3")],
    [(10, "Journal of Lutes"), (20, "Strings"), (10, "Gut 0.5 1.2"), *BODY[2:], (10, "Page 3 of 3")],
]


def test_paper(read, log):
    row = read(ReadPdf(), pdf(PAPER, title="On lutes"), "a.pdf")
    assert isinstance(row, Document) and row.title == "On lutes"
    wood, strings = row.sections
    assert wood.headings == ("Wood",) and strings.headings == ("Strings",)
    assert "Spruce is resonant and examples\nare well-known.\nA well-known case." in wood.text
    assert strings.text.startswith("Gut 0.5 1.2\n") and "Journal" not in wood.text + strings.text
    assert "Page" not in wood.text + strings.text
    assert log == ["a.pdf: 6 running headers, footers and page numbers left out"]
    assert {page for _, page, _ in wood.marks} == {1, 2} and {page for _, page, _ in strings.marks} == {3}
    for section in row.sections:
        for character, _, line in section.marks:
            assert line and section.text[character - 1] != "\n"
            assert character == 1 or section.text[character - 2] == "\n"


@pytest.mark.parametrize("compress", [False, True])
def test_outline_places_headings(read, compress):
    pages = [[(10, "Wood"), (10, "alpha")], [(10, "beta")], [(10, "gamma"), (10, "Strings"), (10, "delta")]]
    row = read(ReadPdf(), pdf(pages, [("Wood", 1), ("Glue", 2), ("Strings", 3)], compress), "a.pdf")
    assert [(s.headings, s.text, s.marks) for s in row.sections] == [
        (("Wood",), "alpha", ((1, 1, 2),)), (("Glue",), "beta\ngamma", ((1, 2, 1), (6, 3, 1))),
        (("Strings",), "delta", ((1, 3, 3),))]


def test_passages_name_page_and_line(read, ctx):
    pages = [[(10, f"Page {word} begins. " + "filler words here " * 4), (10, f"and {word} goes on. " + "more words here " * 4)]
             for word in ("alpha", "beta", "gamma")]
    row = read(ReadPdf(), pdf(pages), "a.pdf")
    passages = list(ChunkByStructure(max_tokens=20, min_tokens=0).apply(iter([row]), ctx))
    assert len(passages) > 3
    for passage in passages:
        first = passage.text.split("\n")[0]
        lines = [text for _, text in pages[passage.page - 1]]
        assert first.strip() in lines[passage.line - 1], passage
    assert {p.page for p in passages} == {1, 2, 3} and passages[0].place == "a.pdf, page 1, line 1"


def test_running_lines_count_along():
    pages = [["Title", f"words {'abcde'[n]}", f"{n + 7}"] for n in range(5)]
    kept, running = read_pdf.without_running(pages)
    assert running == 10 and [p[1] for p in kept] == [f"words {c}" for c in "abcde"]
    pages = [["Left", "u"], ["Right", "v"]] * 3
    assert read_pdf.without_running([[*p, f"text {n}{n * n}", "x" * n] for n, p in enumerate(pages)])[1] >= 6
    rows = [[f"row {n * n} {3 * n}"] for n in range(5)]
    assert read_pdf.without_running(rows) == (rows, 0)  # numbers that differ, but not as pages do
    same = [["all"]] * 4
    assert read_pdf.without_running(same) == (same, 0)


def test_tables_of_contents_are_left_out():
    pages = [["Contents", "1 Wood . . . . . . . . 3", "1.1 Spruce.......... 12", "Preface ..... iv", "2 Glue . . . 4"],
             ["1 Wood", "Wood ... 3 kinds of it.", "See chapter 12"]]
    kept, count = read_pdf.without_contents(pages)
    assert count == 3 and kept == [["Contents", "", "", "", "2 Glue . . . 4"], pages[1]]
    assert read_pdf.without_contents([pages[0][1:3]]) == ([pages[0][1:3]], 0)


@pytest.mark.parametrize(("content", "reason"), [
    (b"", "empty"), (b"no PDF at all", "damaged"), (b"%PDF-1.4\n%%EOF", "damaged"),
    (pdf([[], []]), "no text layer"), (pdf(PAPER, encrypt=True), "encrypted"),
])
def test_named_and_skipped(read, content, reason):
    row = read(ReadPdf(), content, "bad.pdf")
    assert isinstance(row, Dropped) and row.reason == reason and row.detail, row


def hang(path):
    while True:
        pass


def hoard(path):
    return "x" * 2_000_000_000


def test_a_hanging_or_hoarding_parser_is_stopped(tmp_path):
    began = time.monotonic()
    with pytest.raises(NotRead, match="damaged") as caught:
        parse_in_child(f"{__name__}:hang", str(tmp_path), 0.5, 1024)
    assert "0.5 s" in caught.value.detail and time.monotonic() - began < 30
    with pytest.raises(NotRead) as caught:
        parse_in_child(f"{__name__}:hoard", str(tmp_path), 5, 512)
    assert "512 MB" in caught.value.detail
    # A child that reported a failure answers the next call.
    with pytest.raises(NotRead, match="damaged"):
        parse_in_child(f"{__name__}:hoard", str(tmp_path), 5, 512)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A few bytes flipped, a piece cut out or doubled, or the end missing."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        a, b = sorted((rng.randrange(len(made)), rng.randrange(len(made))))
        kind = rng.random()
        if kind < 0.7:
            made[a] = rng.randrange(256)
        elif kind < 0.8:
            del made[a:min(b, a + 40)]
        elif kind < 0.9:
            made[a:a] = made[a:min(b, a + 200)]
        elif len(made) > 20:
            del made[max(10, b):]
    return bytes(made)


@pytest.mark.parametrize("files", [40, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_never_fail(read, files):
    rng = random.Random(files)
    sources = [pdf(PAPER), pdf(PAPER, [("Wood", 1), ("Strings", 3)], compress=True)]
    for number in range(files):
        began = time.monotonic()
        row = read(ReadPdf(), damaged(sources[number % 2], rng), "a.pdf")
        assert isinstance(row, Document | Dropped) and time.monotonic() - began < 10
