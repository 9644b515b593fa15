"""read-pptx: PowerPoint slides as sections below their titles, by python-pptx; the page is the slide's number.

On a slide come its title, then its shapes from top to bottom and from left to right, groups opened: paragraphs, the points of
a list as lines "- point", tables and the numbers of charts as rows "a | b", the words of diagrams; the speaker's notes stand
last. A line is a paragraph or a row, counted on its slide. Pictures are counted and left out.

When it helps: talks, training material. Source: ECMA-376-1, section 19. Needs `pip install 'luthier[office]'`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from luthier.core.example import Section
from luthier.techniques.data._shared import Outline
from luthier.techniques.data._zipped import ZippedReader, container, found, refuse_entities, tree

_DRAWING = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_DIAGRAM = "/diagramData"
_NO_TITLE = "PowerPoint Presentation"  # what python-pptx calls a file without properties


class ReadPptx(ZippedReader, name="read-pptx"):
    """PPTX as a section a slide: title, text, tables, charts, notes; the page is the slide's number."""

    suffixes: ClassVar[tuple[str, ...]] = (".pptx",)
    modules: ClassVar[tuple[str, ...]] = ("pptx",)

    @property
    def call(self) -> str:
        """Where it is parsed."""
        return f"{__name__}:parsed"


def prepare() -> None:
    """Import what takes a while to start."""
    import pptx  # noqa: F401


def parsed(path: str) -> dict[str, Any]:
    """Title, sections and log of the presentation at `path`. Raises NotRead."""
    from pptx import Presentation

    with container(path) as packed:
        refuse_entities(packed)
    shown = Presentation(path)
    pictures: list[Any] = []
    sections: list[Section] = []
    for number, slide in enumerate(shown.slides, 1):
        sections += _slide(slide, number, pictures)
    title = shown.core_properties.title or ""
    return found("" if title == _NO_TITLE else title, sections, pictures=len(pictures))


def _slide(slide: Any, number: int, pictures: list[Any]) -> tuple[Section, ...]:
    """A slide by itself: one without a title does not belong to the slide before it."""
    outline, line = Outline(), 0
    title = slide.shapes.title
    heading = _flat(title.text_frame.text) if title is not None else ""
    if heading:
        line += 1
        outline.heading(1, heading, line, number)
    blocks = [_block(shape, pictures) for shape in _in_order(slide.shapes)
              if title is None or shape.shape_id != title.shape_id]
    blocks += [_words(rel.target_part.blob) for rel in slide.part.rels.values()
               if not rel.is_external and rel.reltype.endswith(_DIAGRAM)]
    if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame) is not None:
        blocks.append([_flat(p.text) for p in notes.paragraphs])
    for block in blocks:
        outline.line("")
        for text in filter(None, block):
            line += 1
            outline.line(text, line, number)
    return outline.sections()


def _in_order(shapes: Iterable[Any]) -> Iterator[Any]:
    """Shapes as they are read, the members of a group in its place."""
    for shape in sorted(shapes, key=lambda s: (s.top or 0, s.left or 0)):
        if hasattr(shape, "shapes"):
            yield from _in_order(shape.shapes)
        else:
            yield shape


def _block(shape: Any, pictures: list[Any]) -> list[str]:
    """The lines of a shape."""
    if getattr(shape, "has_table", False):
        rows = [[_flat(cell.text) for cell in row.cells] for row in shape.table.rows]
        return [" | ".join(row) for row in rows if any(row)]
    if getattr(shape, "has_chart", False):
        return _numbers(shape.chart)
    if getattr(shape, "has_text_frame", False):
        lines = [text for p in shape.text_frame.paragraphs if (text := _flat(p.text))]
        listed = shape.is_placeholder and len(lines) > 1
        return [f"- {text}" if listed else text for text in lines]
    if hasattr(shape, "image"):
        pictures.append(shape)
    return []


def _numbers(chart: Any) -> list[str]:
    """A chart's title and its series, a row each, below the row of what they stand over."""
    made = [_flat(chart.chart_title.text_frame.text)] if chart.has_title and chart.chart_title.has_text_frame else []
    above: dict[int, str] = {}
    for series in (series for plot in chart.plots for series in plot.series):
        over, values = _points(series, "c:cat", "c:xVal"), _points(series, "c:val", "c:yVal")
        places = sorted(over.keys() | values.keys())
        if over != above:
            made.append(" | ".join(["", *(over.get(n, "") for n in places)]).strip())
        made.append(" | ".join([_flat(series.name), *(values.get(n, "") for n in places)]))
        above = over
    return made


def _points(series: Any, *names: str) -> dict[int, str]:
    """What a series says by the number of the point: the points that are there, for a count may state any number."""
    found: dict[int, str] = {}
    for point in (p for name in names for p in series._element.xpath(f"{name}//c:pt[@idx]")):
        text = _flat("".join(point.xpath("c:v/text()")))
        try:
            text = f"{float(text):g}"
        except ValueError:
            pass  # the name of a category
        found.setdefault(int(point.get("idx")), text)
    return found


def _words(blob: bytes) -> list[str]:
    """The paragraphs of a diagram's data."""
    return [_flat("".join(t.text or "" for t in p.iter(f"{_DRAWING}t"))) for p in tree(blob).iter(f"{_DRAWING}p")]


def _flat(text: str) -> str:
    return " ".join(text.split())
