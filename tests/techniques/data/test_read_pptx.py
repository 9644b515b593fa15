"""Presentations made with python-pptx: slides, tables, charts, notes, and files that are no good."""

import io
import random
import time
import zipfile

import pytest

from luthier.core.example import Document, Dropped, Section
from luthier.techniques.data.chunk_by_structure import ChunkByStructure
from luthier.techniques.data.read_pptx import ReadPptx
from tests.techniques.data.office import damaged_inside, docx, p, zipped
from tests.techniques.data.test_read_pdf import damaged

pptx = pytest.importorskip("pptx")
pytest.importorskip("pptx.chart.data")
TITLE_AND_TEXT, BLANK = 1, 6


@pytest.fixture
def deck():
    """A function that adds a slide and gives it; `saved` makes bytes of all of them."""
    made = pptx.Presentation()

    def slide(title="", *points):
        new = made.slides.add_slide(made.slide_layouts[TITLE_AND_TEXT if title else BLANK])
        if title:
            new.shapes.title.text = title
            new.placeholders[1].text_frame.text = "\n".join(points)
        return new

    def saved() -> bytes:
        data = io.BytesIO()
        made.save(data)
        return data.getvalue()

    slide.saved, slide.made = saved, made
    return slide


def inches(*values):
    return [pptx.util.Inches(v) for v in values]


def full(deck) -> bytes:
    """Title, list, table and notes; then a slide without a title with boxes out of order, a group and charts."""
    first = deck("Wood & glue", "spruce_wörd", "ebony 木")
    table = first.shapes.add_table(2, 2, *inches(1, 5, 4, 1)).table
    for n, text in enumerate(("a", "b", "1", "2")):
        table.cell(n // 2, n % 2).text = text
    first.notes_slide.notes_text_frame.text = "Say this.\nThen that."
    second = deck()
    for text, top in (("below", 3), ("above", 1)):
        second.shapes.add_textbox(*inches(0, top, 2, 1)).text_frame.text = text
    second.shapes.add_group_shape().shapes.add_textbox(*inches(0, 2, 2, 1)).text_frame.text = "between"
    data = pptx.chart.data.CategoryChartData()
    data.categories = ["Q1", "Q2"]
    data.add_series("sold", (1.5, 2))
    second.shapes.add_chart(pptx.enum.chart.XL_CHART_TYPE.COLUMN_CLUSTERED, *inches(0, 4, 2, 1), data)
    dots = pptx.chart.data.XyChartData()
    dots.add_series("dots").add_data_point(3, 4)
    second.shapes.add_chart(pptx.enum.chart.XL_CHART_TYPE.XY_SCATTER, *inches(0, 5, 2, 1), dots)
    return deck.saved()


def test_slides(read, deck):
    row = read(ReadPptx(), full(deck), "a.pptx")
    assert isinstance(row, Document) and row.title == "Wood & glue"
    assert row.sections == (
        Section(("Wood & glue",), "- spruce_wörd\n- ebony 木\n\na | b\n1 | 2\n\nSay this.\nThen that.",
                ((1, 1, 2), (15, 1, 3), (26, 1, 4), (32, 1, 5), (39, 1, 6), (49, 1, 7))),
        Section((), "above\n\nbetween\n\nbelow\n\n| Q1 | Q2\nsold | 1.5 | 2\n\n| 3\ndots | 4",
                ((1, 2, 1), (8, 2, 2), (17, 2, 3), (24, 2, 4), (34, 2, 5), (50, 2, 6), (54, 2, 7))))


def test_passages_name_the_slide(read, ctx, deck):
    for word in ("alpha", "beta", "gamma"):
        deck(f"About {word}", f"The {word} slide says that. " + "filler words here " * 4)
    row = read(ReadPptx(), deck.saved(), "a.pptx")
    passages = list(ChunkByStructure(max_tokens=40, min_tokens=0).apply(iter([row]), ctx))
    assert [q.place for q in passages if "gamma" in q.text] == ["a.pptx, page 3, line 2"]
    assert {q.page for q in passages} == {1, 2, 3}


def test_a_slide_without_text_below_its_title_is_its_title(read, deck):
    deck("Only this")
    deck.made.core_properties.title = "The talk"
    row = read(ReadPptx(), deck.saved(), "a.pptx")
    assert row.title == "The talk" and row.sections == (Section(("Only this",), "Only this", ((1, 1, 1),)),)


def test_points_that_are_only_counted_cost_nothing(read, deck):
    whole = full(deck)
    with zipfile.ZipFile(io.BytesIO(whole)) as packed:
        parts = {name: packed.read(name).replace(b'ptCount val="2"', b'ptCount val="999999999999"')
                 for name in packed.namelist()}
    assert read(ReadPptx(), zipped(parts), "a.pptx").sections == read(ReadPptx(), whole, "a.pptx").sections


def test_pictures_are_counted(read, deck, log, tmp_path):
    from PIL import Image

    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    deck().shapes.add_picture(str(tmp_path / "a.png"), 0, 0)
    row = read(ReadPptx(), deck.saved(), "scan.pptx")
    assert row == Dropped("scan.pptx", "no text layer", row.detail) and "1 pictures" in row.detail
    deck("Title", "text")
    assert isinstance(read(ReadPptx(), deck.saved(), "a.pptx"), Document) and log == ["a.pptx: 1 pictures left out"]


@pytest.mark.parametrize(("content", "reason"), [
    (b"", "empty"), (b"no zip", "damaged"), (zipped({"a.txt": "x"}), "damaged"), (docx(p("text")), "damaged"),
    (bytes.fromhex("d0cf11e0a1b11ae1") + "EncryptedPackage".encode("utf-16-le"), "encrypted"),
    (zipped({"ppt/slides/slide1.xml": '<!DOCTYPE x [<!ENTITY a "ha">]><x>&a;</x>'}), "unsafe"),
])
def test_named_and_skipped(read, content, reason):
    row = read(ReadPptx(), content, "bad.pptx")
    assert isinstance(row, Dropped) and row.reason == reason and row.detail, row


def test_no_slide_is_empty(read, deck):
    assert read(ReadPptx(), deck.saved(), "a.pptx").reason == "empty"


@pytest.mark.parametrize("files", [20, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_never_fail(read, deck, files):
    rng = random.Random(files)
    whole = full(deck)
    for number in range(files):
        began = time.monotonic()
        bad = damaged(whole, rng) if number % 2 else damaged_inside(whole, rng, damaged)
        row = read(ReadPptx(), bad, "a.pptx")
        assert isinstance(row, Document | Dropped) and time.monotonic() - began < 10
