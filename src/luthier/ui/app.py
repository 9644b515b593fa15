"""The application: five pages of Gradio behind a door of our own, and the reports of runs."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from luthier.ui.studio import Studio
from luthier.ui.uploads import MEGABYTE

# Read by Gradio when it is imported: nothing is sent anywhere, and nothing asked for.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from luthier import __version__
from luthier.core.errors import UserError
from luthier.pipelines import report
from luthier.ui import shown
from luthier.ui.door import Door
from luthier.ui.pages import adapt, audit, catalogue, compare, runs
from luthier.ui.pages._shared import html

KEPT_SECONDS = 24 * 3600  # files that were sent and not used
SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
PAPER, DARK_PAPER, INK, DARK_INK = "#fbfaf7", "#171614", "#22201d", "#ebe6de"
ACCENT, DARK_ACCENT = "#9a4a1c", "#e39a63"


def application(studio: Studio, token: bytes | None = None) -> Door:
    """The ASGI application for a folder of runs."""
    os.environ["GRADIO_TEMP_DIR"] = str(studio.sent.resolve())
    studio.sent.mkdir(parents=True, exist_ok=True)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        studio.close()
        shutil.rmtree(studio.sent, ignore_errors=True)

    app = FastAPI(title="Luthier", version=__version__, lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> Response:
        return PlainTextResponse("ok")

    @app.get("/report/{name}")
    def whole(name: str) -> Response:
        return _report(studio, name)

    most = studio.most
    with warnings.catch_warnings(action="ignore"):  # that several pages have no rendering on the server, which nobody asked for
        gr.mount_gradio_app(
            app, pages(studio), path="", theme=_theme(), head=shown.head(), footer_links=[], ssr_mode=False, show_error=False,
            pwa=False, mcp_server=False, enable_monitoring=False, max_file_size=most.file_megabytes * MEGABYTE)
    return Door(app, token, most.megabytes * MEGABYTE)


async def _only_sent(block: Any, path: str | Path | None) -> str | None:
    """A file that a request names, where it was sent to this page: no other one is copied, and no address is fetched.

    Raises:
        gr.Error: it was not.
    """
    if path is None or Path(path).resolve().is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"])):
        return None if path is None else str(path)
    raise gr.Error("A file that was not sent to this page is named. Drop it again.", print_exception=False)


# Gradio would copy whatever file of this machine a request names, and fetch whatever address: its own check asks whether
# `launch` was called, which a mounted application never does.
gr.blocks.Block.async_move_resource_to_block_cache = _only_sent  # type: ignore[method-assign, assignment]


def pages(studio: Studio) -> gr.Blocks:
    """All pages; the first one is Adapt."""
    with gr.Blocks(title="Luthier", analytics_enabled=False, delete_cache=(KEPT_SECONDS // 24, KEPT_SECONDS)) as demo:
        gr.Navbar(visible=False)
        html(shown.navigation("/"))
        adapt.page(studio, demo)
    for (path, title), module in zip(shown.PAGES[1:], (runs, compare, audit, catalogue), strict=True):
        with demo.route(title, path):
            html(shown.navigation(path))
            module.page(studio, demo)
    return demo


def _report(studio: Studio, name: str) -> Response:
    """The report of a run, as its command left it, or as far as an unfinished run gives ground for one."""
    try:
        run = studio.open(name)
    except UserError as error:
        return PlainTextResponse(str(error), 404)
    path = run.folder / "report.html"
    return HTMLResponse(path.read_text(encoding="utf-8") if path.exists() else report.render(run))


def _theme() -> gr.themes.Base:
    """The colours and fonts of the report; every font is one that a machine has."""
    theme = gr.themes.Base(primary_hue="orange", secondary_hue="stone", neutral_hue="stone", font=SANS, font_mono=MONO,
                           radius_size="sm")
    return theme.set(
        body_background_fill=PAPER, body_background_fill_dark=DARK_PAPER, body_text_color=INK, body_text_color_dark=DARK_INK,
        block_background_fill=PAPER, block_background_fill_dark=DARK_PAPER,
        background_fill_primary=PAPER, background_fill_primary_dark=DARK_PAPER,
        block_label_text_color=INK, block_label_text_color_dark=DARK_INK,
        block_title_text_color=INK, block_title_text_color_dark=DARK_INK,
        input_background_fill="#ffffff", input_background_fill_dark="#23211e",
        input_border_color="#8c857b", input_border_color_dark="#7a7268",
        input_border_width="1px", input_border_width_dark="1px",
        input_border_color_focus=ACCENT, input_border_color_focus_dark=DARK_ACCENT,
        input_placeholder_color="#6a645c", input_placeholder_color_dark="#a49c91",
        body_text_color_subdued="#6a645c", body_text_color_subdued_dark="#a49c91",
        block_info_text_color="#6a645c", block_info_text_color_dark="#a49c91",
        button_primary_background_fill=ACCENT, button_primary_background_fill_dark=DARK_ACCENT,
        button_primary_background_fill_hover="#7f3c15", button_primary_background_fill_hover_dark="#eab184",
        button_primary_border_color=ACCENT, button_primary_border_color_dark=DARK_ACCENT,
        button_primary_border_color_hover="#7f3c15", button_primary_border_color_hover_dark="#eab184",
        button_primary_text_color="#ffffff", button_primary_text_color_dark="#171614",
        button_secondary_background_fill="#ece7de", button_secondary_background_fill_dark="#37332e",
        button_secondary_text_color=INK, button_secondary_text_color_dark=DARK_INK,
        checkbox_background_color_selected=ACCENT, checkbox_background_color_selected_dark=DARK_ACCENT,
        checkbox_border_color="#8c857b", checkbox_border_color_dark="#7a7268")
