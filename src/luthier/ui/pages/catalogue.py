"""Catalogue: the 210 published techniques by words: what each does, what is recorded of it here, and what to type."""

from __future__ import annotations

from typing import Any

import gradio as gr

from luthier.core import catalog
from luthier.core.index import rows
from luthier.ui import shown
from luthier.ui.pages._shared import html, worded
from luthier.ui.studio import Studio


def page(_: Studio, demo: gr.Blocks) -> None:
    """The page; `?q=WORDS` searches."""
    components = [(r["kind"], r["name"], r["version"], r["seeds"]) for r in rows()]
    seeds = catalog.rows(components)
    commands = {seed["id"]: catalog.commands(seed["id"], components) for seed in seeds}
    html(shown.title("Catalogue", f"{len(seeds)} published techniques. Search by what they do, by kind, by name, or by "
                                     "status: studied, verified, runs."))
    def searched(text: str) -> str:
        return shown.cards(catalog.search(text or "", seeds), commands, catalog.records())

    def opened(request: gr.Request) -> tuple[Any, ...]:
        text = request.query_params.get("q", "")
        # Without words everything stands there already, and what is typed meanwhile must stay.
        return (text, searched(text)) if text else (gr.skip(), gr.skip())

    words = gr.Textbox(label="Search", placeholder="merge adapters", max_lines=1)
    notice, found = html(), html(searched(""))

    demo.load(worded(2)(opened), None, [notice, words, found], show_progress="hidden",
              api_name=False)  # type: ignore[arg-type]
    # Not `input`, which what is pasted with the mouse does not raise.
    words.change(worded(1)(searched), words, [notice, found], show_progress="hidden", trigger_mode="always_last",
                 api_name="search")
