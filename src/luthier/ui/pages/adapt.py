"""Adapt: drop documents, see what was understood and what a run would take, start it, watch it, stop it, go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from luthier.core.errors import UserError
from luthier.core.index import rows
from luthier.engine.packages import PACKAGES
from luthier.pipelines import planning
from luthier.pipelines.report import data, plans
from luthier.pipelines.report.markup import details, el
from luthier.ui import shown
from luthier.ui.pages._shared import Watched, html, worded
from luthier.ui.processes import written
from luthier.ui.studio import Order, Studio

AS_RECIPE = "as the recipe has it"


def page(studio: Studio, _: gr.Blocks) -> None:
    """The page."""
    html(shown.title("Adapt", "Documents (or one file of rows) in; a tuned model out, and the evidence of what was gained. "
                                 "Nothing leaves this machine."))
    files = gr.File(label="Documents, rows, or a zip archive of them", file_count="multiple", height=160)
    demo = gr.Checkbox(label="The demo instead: ten pages and a model of random weights, in a minute")
    with gr.Row():
        name = gr.Textbox(label="Name of the run", placeholder="handbook", max_lines=1, min_width=200,
                          info="letters, digits, - and _")
        base = gr.Dropdown([AS_RECIPE, *PACKAGES], value=AS_RECIPE, label="Base model", allow_custom_value=True, min_width=200,
                           info="a packaged one, a local folder, or a hub id")
        method = gr.Dropdown([AS_RECIPE, *(r["name"] for r in rows() if r["kind"] == "method")], value=AS_RECIPE,
                             label="Method", allow_custom_value=True, min_width=200, info="which weights move")
    with gr.Accordion("Questions of your own, seed, terms", open=False):
        questions = gr.File(label="Your own test questions (JSON lines)", file_count="single", height=120)
        seed = gr.Textbox(label="Seed", placeholder="of the recipe", max_lines=1)
        terms = gr.Checkbox(label="I have read and accept the Gemma Terms of Use (needed once for a Gemma model)")
    with gr.Row():
        look = gr.Button("Look and plan", min_width=120)
        start = gr.Button("Start", variant="primary", min_width=120)
    notice, understood, planned = html(), html(), html()
    given = [files, demo, name, base, method, questions, seed, terms]
    at_work = gr.Textbox(visible=False)
    watched = Watched(studio, at_work, notice, lambda name: studio.runs().get(name), _ended)

    def looked(*values: Any) -> Iterator[tuple[str, str]]:
        order = _order(*values)
        paths, arguments = studio.prepared(order)
        yield shown.quiet("Reading …"), ""
        found = shown.quiet("The demo's ten pages of Python's language reference.") if order.demo else \
            shown.framed(data.body(studio.inspected(order, paths)))
        yield found, shown.quiet("Planning …")
        made = studio.recipe(order, paths)
        text = details("The recipe, every default written out", el("pre", made.to_yaml(), class_="sample", tabindex="0"))
        yield found, shown.framed(el("h2", "What it would take"), plans.body(planning.plans(made)), el("h3", "The command"),
                                  shown.copied(written(arguments)), text)

    def started(*values: Any) -> tuple[Any, ...]:
        order = _order(*values)
        _, arguments = studio.prepared(order)
        studio.processes.start(order.name, arguments)
        return (order.name, *watched.now(order.name))

    look.click(worded(2)(looked), given, [notice, understood, planned], api_name="look")
    start.click(worded(1 + len(watched.outputs))(started), given, [notice, at_work, *watched.outputs], api_name="start")


def _order(files: Sequence[str] | None, demo: bool, name: str, base: str, method: str, questions: str | None, seed: str,
           terms: bool) -> Order:
    text = (seed or "").strip()
    if text and not text.isdecimal():
        raise UserError(f"The seed {text[:20]!r} is no whole number.")
    return Order((name or "").strip(), [Path(f) for f in files or ()], [Path(questions)] if questions else [], bool(demo),
                 "" if base == AS_RECIPE else (base or "").strip(), "" if method == AS_RECIPE else (method or "").strip(),
                 int(text) if text else None, "gemma" if terms else "")


def _ended(name: str) -> str:
    return shown.framed(el("p", "Go on: ", el("a", "the run", href=f"/runs?run={name}"), ", ", el(
        "a", "its report", href=f"/report/{name}", target="_blank"), ", ", el("a", "ask it", href=f"/compare?run={name}"), "."))
