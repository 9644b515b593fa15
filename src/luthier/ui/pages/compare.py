"""Compare: one question to several arms of a run, side by side, and what its paired comparison says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from luthier.core.errors import UserError
from luthier.pipelines import report
from luthier.pipelines.asking import arms
from luthier.pipelines.report.markup import Html, el
from luthier.ui import shown
from luthier.ui.pages._shared import as_sent, html, worded
from luthier.ui.studio import Studio


def page(studio: Studio, demo: gr.Blocks) -> None:
    """The page; `?run=NAME` chooses a run."""
    html(shown.title("Compare", "One question, several arms. An answer is an anecdote: the paired comparison below is the "
                                   "evidence."))
    name = as_sent(gr.Dropdown([], label="Run", interactive=True))
    chosen = as_sent(gr.CheckboxGroup([], label="Arms", interactive=True))
    question = gr.Textbox(label="Question", lines=1, max_lines=6, placeholder="Enter asks")
    ask = gr.Button("Ask", variant="primary")
    notice, answers, evidence = html(), html(), html()

    def opened(request: gr.Request) -> tuple[Any, ...]:
        found = [n for n, run in studio.runs().items() if _arms(run)]
        if not found:
            raise UserError(f"No run in {studio.root} has a finished arm yet. Make one on the page Adapt.")
        wanted = request.query_params.get("run", "")
        first = wanted if wanted in found else found[0]
        return (gr.Dropdown(choices=found, value=first), *picked(first))

    def picked(run: str) -> tuple[Any, ...]:
        names = _arms(studio.open(run))
        return gr.CheckboxGroup(choices=names, value=names), _evidence(studio, run)

    def asked(run: str, text: str, wanted: Sequence[str]) -> Iterator[str]:
        found: list[dict[str, Any]] = []
        waiting = list(wanted)
        if waiting and text.strip():
            yield shown.answers(found, waiting)
        for answer in studio.answers(run, text, wanted):
            found.append(answer)
            yield shown.answers(found, waiting[len(found):])

    demo.load(worded(3)(opened), None, [notice, name, chosen, evidence], show_progress="hidden", api_name="arms")
    name.input(worded(2)(picked), name, [notice, chosen, evidence], api_name=False)
    for event, called in ((ask.click, "ask"), (question.submit, False)):
        event(worded(1)(asked), [name, question, chosen], [notice, answers], concurrency_limit=1,
              api_name=called)  # type: ignore[arg-type]


def _arms(run: Any) -> list[str]:
    """The arms of a run; none of a folder whose recipe can't be read, such as one of a later version."""
    try:
        return list(arms(run))
    except (UserError, OSError):
        return []


def _evidence(studio: Studio, name: str) -> str:
    """Scores, paired comparisons and forest plots, as the run's report has them."""
    return shown.framed(el("p", el("a", "The whole report", href=f"/report/{name}", target="_blank"), "."),
                        Html(report.parts(studio.open(name), ("comparisons", "scores"))))
