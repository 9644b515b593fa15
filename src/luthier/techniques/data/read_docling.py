"""read-docling: PDF and more by their layout, with docling and models that lie on this machine.

docling finds columns, headings and tables by looking at the page, and reads scanned pages where `ocr` is on. Tables are
Markdown, headings open sections, the page is that of the file; page headers and footers are left out, pictures counted. The
models are fetched once with `docling-tools models download` and never by this reader: without `models`, docling's own folder
of them (~/.cache/docling/models) is taken.

When it helps: scans, papers in two columns, tables that `read-pdf` takes apart; it is slower by far. Source: Auer et al. 2024,
Docling Technical Report (arXiv 2408.09869). Needs `pip install 'luthier[docling]'`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Document, Dropped, Section, SourceFile
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._child import parse_in_child
from luthier.techniques.data._shared import NotRead, Outline, read_bytes

_RUNNING = ("page_header", "page_footer")
_INSTALL = "pip install 'luthier[docling]'"
_FETCH = "docling-tools models download"
_UNREADY = "not ready"
_HOME = Path("~/.cache/docling/models")


class ReadDocling(DataStep, name="read-docling"):
    """PDF by layout with local models: columns, headings, tables as Markdown, scanned pages."""

    suffixes: ClassVar[tuple[str, ...]] = (".pdf",)
    models: str = Field("", description="folder of docling's models; empty: where docling-tools puts them")
    ocr: bool = Field(False, description="recognise the text of scanned pages; needs an engine that docling knows")
    max_megabytes: float = Field(50.0, gt=0, description="a larger file is left out, in 1 000 000 bytes")
    max_pages: int = Field(2000, ge=1, description="a file of more pages is left out")
    max_seconds: float = Field(600.0, gt=0, description="a file that takes longer is left out; the first one loads the models")
    max_memory_megabytes: float = Field(32_000.0, ge=1024, description="a file that takes more to parse is left out")

    def missing(self, suffix: str) -> str:
        """What has to be installed before files can be read; empty when nothing."""
        return "" if find_spec("docling") else _INSTALL

    def apply(self, rows: Iterator[SourceFile], ctx: Ctx) -> Iterator[Document | Dropped]:
        """One `Document` or one `Dropped` a file, in order. Raises UserError without docling or without a model of its."""
        if self.missing(""):
            raise UserError(f"read-docling needs docling, which is not installed: {_INSTALL}")
        folder = Path(self.models or _HOME).expanduser()
        if not folder.is_dir():
            raise UserError(f"read-docling finds no models at {folder}. Fetch them once: {_FETCH}; or name their folder: "
                            "read-docling:models=FOLDER")
        for file in rows:
            try:
                data = read_bytes(file, self.max_megabytes)
                found = parse_in_child(f"{__name__}:parsed", file.path, self.max_seconds, self.max_memory_megabytes,
                                       models=str(folder), ocr=self.ocr, max_pages=self.max_pages)
            except NotRead as why:
                if why.reason == _UNREADY:
                    raise UserError(f"read-docling cannot start with the models at {folder}: {why.detail}") from None
                yield Dropped(file.id, why.reason, why.detail)
                continue
            for line in found["log"]:
                ctx.log(f"{file.id}: {line}")
            sections = tuple(Section(tuple(headings), text, tuple((c, p, n) for c, p, n in marks))
                             for headings, text, marks in found["sections"])
            yield Document(file.id, found["title"] or Path(file.id).name, sections, hashlib.sha256(data).hexdigest()[:32])


def prepare() -> None:
    """Import docling, which takes many seconds; nothing that it imports may reach for the network."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    import docling.document_converter  # noqa: F401


_converters: dict[tuple[str, bool], Any] = {}  # in the child: models are loaded once


def parsed(path: str, models: str, ocr: bool, max_pages: int) -> dict[str, Any]:
    """Title, sections and log of the file at `path`. Raises NotRead."""
    if (models, ocr) not in _converters:
        _converters[models, ocr] = _converter(models, ocr)
    made = _converters[models, ocr].convert(Path(path), raises_on_error=False, max_num_pages=max_pages)
    status = str(getattr(made.status, "value", made.status))
    if status not in ("success", "partial_success"):
        why = "; ".join(str(getattr(e, "error_message", e)) for e in made.errors) or status
        locked = "password" in why.lower() or "encrypted" in why.lower()
        raise NotRead("encrypted" if locked else "damaged", f"{why[:200]}; save it anew")
    if status == "partial_success":  # some pages are missing, and which is not said
        raise NotRead("damaged", "docling could read a part of it only; save it anew, or raise max_seconds")
    outline, pictures, titled = Outline(), 0, ""
    for item, _ in made.document.iterate_items():
        label = str(getattr(item.label, "value", item.label))
        page = item.prov[0].page_no if getattr(item, "prov", None) else 0
        text = (item.export_to_markdown(doc=made.document) if label == "table" else getattr(item, "text", "")) or ""
        pictures += label == "picture"
        if label in _RUNNING or label == "picture" or not text.strip():
            continue
        if label in ("title", "section_header"):
            level = 1 if label == "title" else 1 + int(getattr(item, "level", 1))
            titled = titled or (" ".join(text.split()) if label == "title" else "")
            outline.heading(level, " ".join(text.split()), page=page)
            continue
        if label != "list_item":
            outline.line("")
        lines = text.split("\n") if label in ("table", "code") else [" ".join(text.split())]
        for line in ["```", *lines, "```"] if label == "code" else [f"- {lines[0]}"] if label == "list_item" else lines:
            outline.line(line, page=page)
    sections = outline.sections()
    if not sections:
        raise NotRead("no text layer", "no text was found; for scanned pages: read-docling:ocr=true")
    return {"title": titled or outline.first(), "sections": [(s.headings, s.text, s.marks) for s in sections],
            "log": [f"{pictures} pictures left out"] if pictures else []}


def _converter(models: str, ocr: bool) -> Any:
    from docling.datamodel.base_models import InputFormat
    from docling.datamodel.pipeline_options import PdfPipelineOptions
    from docling.document_converter import DocumentConverter, PdfFormatOption

    options = PdfPipelineOptions(artifacts_path=models, do_ocr=ocr, enable_remote_services=False)
    converter = DocumentConverter(allowed_formats=[InputFormat.PDF],
                                  format_options={InputFormat.PDF: PdfFormatOption(pipeline_options=options)})
    try:
        converter.initialize_pipeline(InputFormat.PDF)
    except Exception as error:  # a model or an engine that is missing: of every file, not of the one at hand
        raise NotRead(_UNREADY, f"{type(error).__name__}: {str(error)[:300]} Fetch what is missing: {_FETCH}") from None
    return converter
