"""read-docling against a stand-in with docling's names, for docling itself is large: what it is asked, what is made of it."""

from pathlib import Path

import pytest

from luthier.core.errors import UserError
from luthier.core.example import Document, Dropped, Section, SourceFile
from luthier.techniques.data import read_docling
from luthier.techniques.data.read_docling import ReadDocling

BASE_MODELS = """
from enum import Enum
class InputFormat(str, Enum):
    PDF = "pdf"
class ConversionStatus(str, Enum):
    SUCCESS, PARTIAL_SUCCESS, FAILURE = "success", "partial_success", "failure"
"""
OPTIONS = """
class PdfPipelineOptions:
    def __init__(self, artifacts_path, do_ocr, enable_remote_services):
        assert enable_remote_services is False
        self.artifacts_path, self.do_ocr = artifacts_path, do_ocr
"""
CONVERTER = '''
import os
from enum import Enum
from pathlib import Path
from types import SimpleNamespace as Made
from docling.datamodel.base_models import ConversionStatus, InputFormat
class DocItemLabel(str, Enum):
    TITLE, SECTION_HEADER, TEXT, LIST_ITEM, CODE, PICTURE, TABLE, PAGE_FOOTER = (
        "title", "section_header", "text", "list_item", "code", "picture", "table", "page_footer")
def item(label, text="", page=1, **more):
    return Made(label=label, text=text, prov=[Made(page_no=page)], **more)
class Table:
    label, prov = DocItemLabel.TABLE, [Made(page_no=3)]
    def export_to_markdown(self, doc=None):
        assert doc is not None
        return "| a | b |\\n|---|---|\\n| 1 | 2 |"
class PdfFormatOption:
    def __init__(self, pipeline_options):
        self.options = pipeline_options
class DocumentConverter:
    def __init__(self, allowed_formats, format_options):
        self.options = format_options[InputFormat.PDF].options
    def initialize_pipeline(self, kind):
        if (Path(self.options.artifacts_path) / "no layout model").exists():
            raise FileNotFoundError("Model 'layout' not found in artifacts_path.")
    def convert(self, source, raises_on_error=True, max_num_pages=0):
        assert isinstance(source, Path) and not raises_on_error and os.environ["HF_HUB_OFFLINE"] == "1"
        said = source.read_text()
        if said in ("password needed", "no PDF"):
            return Made(status=ConversionStatus.FAILURE, errors=[Made(error_message=said)])
        if said == "half":
            return Made(status=ConversionStatus.PARTIAL_SUCCESS, errors=[])
        items = [item(DocItemLabel.TITLE, "On  lutes"), item(DocItemLabel.TEXT, f"{self.options.artifacts_path} "
                                                                          f"{max_num_pages}"),
                 item(DocItemLabel.SECTION_HEADER, "Wood", 2, level=1), item(DocItemLabel.TEXT, "Spruce\\nrings.", 2),
                 item(DocItemLabel.PAGE_FOOTER, "2", 2), item(DocItemLabel.LIST_ITEM, "one", 2),
                 item(DocItemLabel.LIST_ITEM, "two", 3), item(DocItemLabel.PICTURE, page=3), Table(),
                 item(DocItemLabel.CODE, "x = 1\\n  y", 4)]
        scanned = said == "scan" and not self.options.do_ocr
        document = Made(iterate_items=lambda: ((i, 1) for i in ([] if scanned else items)))
        return Made(status=ConversionStatus.SUCCESS, errors=[], document=document)
'''


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The folder of the models, with the stand-in for docling on the path; the child is of this test alone."""
    package = tmp_path / "packages" / "docling"
    for name, text in {"__init__": "", "document_converter": CONVERTER, "datamodel/__init__": "",
                       "datamodel/base_models": BASE_MODELS, "datamodel/pipeline_options": OPTIONS}.items():
        file = package / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(package.parent)
    (tmp_path / "models").mkdir()
    return str(tmp_path / "models")


def test_items_become_sections(read, models, log):
    row = read(ReadDocling(models=models, max_pages=7), "whole", "a.pdf")
    assert isinstance(row, Document) and row.title == "On lutes" and log == ["a.pdf: 1 pictures left out"]
    assert row.sections == (
        Section(("On lutes",), f"{models} 7", ((1, 1, 0),)),
        Section(("On lutes", "Wood"), "Spruce rings.\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```\nx = 1\n  y\n```",
                ((1, 2, 0), (15, 2, 0), (21, 3, 0), (28, 3, 0), (38, 3, 0), (48, 3, 0), (59, 4, 0), (63, 4, 0), (69, 4, 0),
                 (73, 4, 0))))


def test_named_and_skipped(read, models):
    for said, reason in (("password needed", "encrypted"), ("no PDF", "damaged"), ("half", "damaged"),
                         ("scan", "no text layer")):
        row = read(ReadDocling(models=models), said, "a.pdf")
        assert isinstance(row, Dropped) and row.reason == reason and row.detail
    assert isinstance(read(ReadDocling(models=models, ocr=True), "scan", "a.pdf"), Document)


def test_what_is_missing_is_named(ctx, models, monkeypatch):
    file = SourceFile("a.pdf", "a.pdf")
    with pytest.raises(UserError, match="docling-tools models download"):
        next(ReadDocling(models=models + "/none").apply(iter([file]), ctx))
    (Path(models) / "no layout model").touch()
    file_there = Path(models) / "a.pdf"
    file_there.write_text("whole")
    with pytest.raises(UserError, match=r"Model 'layout' not found .* docling-tools models download"):
        next(ReadDocling(models=models).apply(iter([SourceFile("a.pdf", str(file_there))]), ctx))
    assert ReadDocling().missing(".pdf") == ""
    monkeypatch.setattr(read_docling, "find_spec", lambda name: None)
    assert ReadDocling().missing(".pdf") == "pip install 'luthier[docling]'"
    with pytest.raises(UserError, match=r"luthier\[docling\]"):
        next(ReadDocling(models=models).apply(iter([file]), ctx))
