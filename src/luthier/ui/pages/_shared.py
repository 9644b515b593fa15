"""What pages share: errors in words at the top of the page, and a run that is watched while it works."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from luthier.core.errors import LuthierError, UserError
from luthier.core.run import Run
from luthier.ui import shown
from luthier.ui.studio import Studio

log = logging.getLogger("luthier.ui")
EVERY_SECONDS = 2.0


def html(value: str = "") -> gr.HTML:
    """HTML in the report's style, without Gradio's own."""
    return gr.HTML(value, apply_default_css=False)


def as_sent(component: Any) -> Any:
    """A choice that is judged, in words, by who is handed it: what may be chosen changes while the page is open."""
    component.preprocess = lambda payload: payload
    return component


def worded(outputs: int) -> Callable[[Callable[..., Any]], Callable[..., Iterator[tuple[Any, ...]]]]:
    """A function of a button that gives `outputs` values, one time or several, as one whose first value is a notice.

    What goes wrong becomes that notice, and the other values stay as they are. The text of an error nobody foresaw goes
    nowhere, since it may hold what was asked: only its kind is told.
    """
    def around(work: Callable[..., Any]) -> Callable[..., Iterator[tuple[Any, ...]]]:
        @functools.wraps(work)
        def told(*given: Any) -> Iterator[tuple[Any, ...]]:
            try:
                found = work(*given)
                for values in found if isinstance(found, Iterator) else [found]:
                    yield ("", *(values if isinstance(values, tuple) else (values,)))
            except LuthierError as error:
                yield (shown.notice(str(error)), *(gr.skip() for _ in range(outputs)))
            except Exception as error:
                log.error("%s: %s", work.__name__, type(error).__name__)
                yield (shown.notice("Something went wrong here. The command line says more: run the same command there."),
                       *(gr.skip() for _ in range(outputs)))

        return told

    return around


class Watched:
    """A panel that shows a process of this page while it runs, with buttons to stop it and to go on.

    `name` is a component that holds the name of the process, `run(name)` the run that it works on, None before it begins.
    `ended(name)` gives what is shown below while nothing runs.
    """

    def __init__(self, studio: Studio, name: Any, notice: Any, run: Callable[[str], Run | None],
                 ended: Callable[[str], str], curve: bool = True) -> None:
        self.studio, self.run, self.ended, self.curve = studio, run, ended, curve
        self.panel = html()
        with gr.Row():
            self.stop = gr.Button("Stop", visible=False, min_width=80)
            self.resume = gr.Button("Resume", visible=False, min_width=80)
        self.below = html()
        self.timer = gr.Timer(EVERY_SECONDS, active=False)
        self.outputs = [self.panel, self.stop, self.resume, self.below, self.timer]
        self.timer.tick(self.now, name, self.outputs, show_progress="hidden",
                        api_name=False)  # type: ignore[arg-type]
        self.stop.click(worded(len(self.outputs))(self._stopped), name, [notice, *self.outputs], api_name="stop")
        self.resume.click(worded(len(self.outputs))(self._resumed), name, [notice, *self.outputs], api_name="resume")

    def now(self, name: str) -> tuple[Any, ...]:
        """Values of `outputs` as they are now."""
        processes = self.studio.processes
        run = self.run(name) if name else None
        if not name or not (processes.known(name) or run):
            below = self.ended(name) if name else ""
            return "", gr.Button(visible=False), gr.Button(visible=False), below, gr.Timer(active=False)
        running = processes.running(name)
        over = run is not None and run.record.get("state") == "finished" and processes.code(name) in (0, None)
        return (shown.watched(name, run, processes, self.curve), gr.Button(visible=running),
                gr.Button(visible=processes.known(name) and not running and not over),
                "" if running else self.ended(name), gr.Timer(active=running))

    def _stopped(self, name: str) -> tuple[Any, ...]:
        self.studio.processes.stop(checked(name))
        return self.now(name)

    def _resumed(self, name: str) -> tuple[Any, ...]:
        self.studio.processes.resume(checked(name))
        return self.now(name)


def checked(name: str) -> str:
    """The name of a process. Raises UserError where it is none."""
    if not name or name.strip(".") != name or any(c in "/\\\0" for c in name):
        raise UserError("Choose a run.")
    return name
