"""Audit: what tuning broke, before and after, with verdicts; and an audit that is started from here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from luthier.core.errors import UserError, nearest
from luthier.core.run import Run
from luthier.pipelines import auditing, report
from luthier.pipelines.report.markup import Html
from luthier.ui import shown
from luthier.ui.pages._shared import Watched, as_sent, html, worded
from luthier.ui.studio import Studio

SUFFIX = ".audit"  # of the process that audits a run


def page(studio: Studio, demo: gr.Blocks) -> None:
    """The page; `?run=NAME` chooses a run."""
    html(shown.title("Audit", "The model before and after tuning is asked the same things. A small set can't pass by "
                                 "silence: it stays undecided."))
    name = as_sent(gr.Dropdown([], label="Run", interactive=True))
    with gr.Accordion("Which audits", open=False):
        chosen = as_sent(gr.CheckboxGroup([], label="All of them, if none is left out", interactive=True))
    start = gr.Button("Audit this run", variant="primary")
    notice = html()
    at_work = gr.Textbox(visible=False)
    watched = Watched(studio, at_work, notice, lambda key: _audit(studio, key), lambda key: _found(studio, key), curve=False)

    def opened(request: gr.Request) -> tuple[Any, ...]:
        found = [n for n, run in studio.runs().items() if run.has("tuned")]
        if not found:
            raise UserError(f"No run in {studio.root} has a tuned model yet. Make one on the page Adapt.")
        wanted = request.query_params.get("run", "")
        first = wanted if wanted in found else found[0]
        names = auditing.battery("run")
        return (gr.Dropdown(choices=found, value=first), gr.CheckboxGroup(choices=names, value=names), *picked(first))

    def picked(run: str) -> tuple[Any, ...]:
        studio.open(run)
        return (run + SUFFIX, *watched.now(run + SUFFIX))

    def started(run: str, wanted: Sequence[str]) -> tuple[Any, ...]:
        folder = studio.open(run).folder
        if not wanted:
            raise UserError("Choose at least one audit.")
        every = set(wanted) == set(auditing.battery("run"))
        unknown = sorted(set(wanted).difference(auditing.battery("run")))
        if unknown:
            raise UserError(f"There is no audit '{unknown[0]}' of a run. {nearest(unknown[0], auditing.battery('run'))}")
        options = [] if every else [f"--audit={audit}" for audit in wanted]
        studio.processes.start(run + SUFFIX, ["audit", str(folder), *options])
        return picked(run)

    outputs = [at_work, *watched.outputs]
    demo.load(worded(2 + len(outputs))(opened), None, [notice, name, chosen, *outputs], show_progress="hidden",
              api_name="audits")
    name.input(worded(len(outputs))(picked), name, [notice, *outputs], api_name=False)
    start.click(worded(len(outputs))(started), [name, chosen], [notice, *outputs], api_name="audit")


def _audit(studio: Studio, key: str) -> Run | None:
    """The audit of a run as a run of its own, None where there is none."""
    found = Run(studio.open(key.removesuffix(SUFFIX)).folder.joinpath(auditing.FOLDER))
    return found if found.record else None


def _found(studio: Studio, key: str) -> str:
    """Before, after and verdicts, as the run's report has them."""
    run = studio.open(key.removesuffix(SUFFIX))
    if not auditing.audits_of(run):
        return shown.quiet("Nothing of this run was audited yet: the button above begins.")
    return shown.framed(Html(report.parts(run, ("audits",))))
