"""Runs: all of them in a table, and of one its verdicts, scores, curves, cost and receipts, as its report has them."""

from __future__ import annotations

from typing import Any

import gradio as gr

from luthier.core.errors import UserError
from luthier.pipelines import report
from luthier.pipelines.report.markup import Html, el
from luthier.ui import shown
from luthier.ui.pages._shared import Watched, html, worded
from luthier.ui.studio import Studio

SECTIONS = ("answer", "advice", "scores", "cost", "learning", "receipts")


def page(studio: Studio, demo: gr.Blocks) -> None:
    """The page; `?run=NAME` shows a run."""
    html(shown.title("Runs", "What was made in this folder, from here or by the command line. A run's name leads to its "
                               "verdicts, scores, curves and receipts."))
    notice, listed = html(), html()
    name = gr.Textbox(visible=False)
    watched = Watched(studio, name, notice, lambda chosen: studio.runs().get(chosen), lambda chosen: _whole(studio, chosen),
                      curve=False)

    def opened(request: gr.Request) -> tuple[Any, ...]:
        chosen = request.query_params.get("run", "")
        found = studio.runs()
        if chosen and chosen not in found:
            return (shown.runs(found, studio.processes), "", *watched.now(""))
        return (shown.runs(found, studio.processes, chosen), chosen, *watched.now(chosen))

    demo.load(worded(2 + len(watched.outputs))(opened), None, [notice, listed, name, *watched.outputs],
              show_progress="hidden", api_name="runs")


def _whole(studio: Studio, name: str) -> str:
    """The sections of one run's report, and where the whole of it is."""
    try:
        run = studio.open(name)
    except UserError as error:
        return shown.notice(str(error))
    links = el("p", el("a", "The whole report", href=f"/report/{name}", target="_blank"), ", ",
               el("a", "ask it", href=f"/compare?run={name}"), ", ", el("a", "audit it", href=f"/audit?run={name}"), ".")
    return shown.framed(links, Html(report.parts(run, SECTIONS)))
