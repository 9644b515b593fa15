"""read-notebook: Jupyter notebooks as Markdown: text cells as they stand, code cells as fenced code.

Outputs are left out and counted: they are what a program said, not what its author wrote. Lines are those of the Markdown
that the cells make, one after the other with a blank line between.

When it helps: tutorials and analyses kept as `.ipynb`. Source: nbformat 4.5, "The Jupyter Notebook format".
"""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar

from luthier.core.example import Section, SourceFile
from luthier.core.step import Ctx
from luthier.techniques.data._shared import NotRead, Reader
from luthier.techniques.data.read_markdown import ReadMarkdown


class ReadNotebook(Reader, name="read-notebook"):
    """Notebooks: text cells below their headings, code cells fenced, outputs left out and counted."""

    suffixes: ClassVar[tuple[str, ...]] = (".ipynb",)

    def parse(self, text: str) -> tuple[str, tuple[Section, ...]]:
        """Title and sections of a notebook."""
        try:
            book = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise NotRead("damaged", f"no JSON: {str(error)[:200]}; save it anew") from None
        cells = book.get("cells") if isinstance(book, dict) else None
        if not isinstance(cells, list):
            raise NotRead("damaged", "no list 'cells'; a notebook older than version 4 is converted by: "
                                     "jupyter nbconvert --to notebook")
        language = _language(book)
        blocks = [_block(cell, number, language) for number, cell in enumerate(cells, 1)]
        return ReadMarkdown().parse("\n\n".join(b for b in blocks if b.strip()))

    def parse_named(self, file: SourceFile, text: str, ctx: Ctx) -> tuple[str, tuple[Section, ...]]:
        """Title and sections; the log says how many outputs were left out."""
        read = self.parse(text)
        outputs = sum(len(c["outputs"]) for c in json.loads(text)["cells"] if isinstance(c.get("outputs"), list))
        if outputs:
            ctx.log(f"{file.id}: {outputs} outputs of cells left out")
        return read


def _language(book: dict[str, Any]) -> str:
    about = book.get("metadata")
    info = about.get("language_info") if isinstance(about, dict) else None
    name = info.get("name") if isinstance(info, dict) else ""
    return name if isinstance(name, str) and re.fullmatch(r"[\w+#-]{1,30}", name) else ""


def _block(cell: Any, number: int, language: str) -> str:
    """A cell as Markdown. Raises NotRead."""
    kind, source = (cell.get("cell_type"), cell.get("source")) if isinstance(cell, dict) else (None, None)
    lines = [source] if isinstance(source, str) else source
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise NotRead("damaged", f"cell {number} has no text 'source'; save it anew")
    text = "".join(lines).strip("\n")
    if kind != "code" or not text.strip():
        return text
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`{3,}", text)), default=2))
    return f"{fence}{language}\n{text}\n{fence}"
