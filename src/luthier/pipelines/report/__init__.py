"""The report of a run: one self-contained HTML page that says what was done, what came of it and how it is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.core.files import write_atomic
from luthier.core.run import Run
from luthier.pipelines.report.facts import gather
from luthier.pipelines.report.page import page, sections

__all__ = ["parts", "render", "write"]


def render(run: Run) -> str:
    """The report as HTML text, from whatever the run has finished so far."""
    return page(gather(run))


def parts(run: Run, names: Sequence[str]) -> str:
    """Sections of the report by id, as HTML for a page that has its style; what a run has no ground for is said."""
    return sections(gather(run), names)


def write(run: Run) -> Path:
    """Write `RUN/report.html`, whole or not at all; returns its path."""
    path = run.folder / "report.html"
    write_atomic(path, render(run))
    return path
