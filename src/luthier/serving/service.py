"""What the endpoints share: models, the gate, numbers, and how work is waited for, called off, counted and logged."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

import psutil
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from luthier.serving.desk import TICKET, Ticket
from luthier.serving.errors import as_api
from luthier.serving.layers import Stream
from luthier.serving.limits import ApiError, Gate, Limits
from luthier.serving.metrics import Metrics
from luthier.serving.served import Catalogue, Served
from luthier.serving.writing import Writing, event

log = logging.getLogger("luthier.serving")
T = TypeVar("T")


class Service:
    """What the endpoints share: the models, the gate, the numbers, and threads for what waits."""

    def __init__(self, catalogue: Catalogue, limits: Limits, log_text: bool = False) -> None:
        self.catalogue, self.limits, self.log_text = catalogue, limits, log_text
        self.desk = catalogue.shelf.desk
        self.gate = Gate(limits)
        self.metrics = Metrics()
        self.metrics.gauge("luthier_answers", lambda: self.gate.inside)
        self.metrics.gauge("luthier_resident_bytes", lambda: psutil.Process().memory_info().rss)
        self.threads = ThreadPoolExecutor(limits.rows + limits.queue, thread_name_prefix="asking")
        self.draining = False

    async def aside(self, ticket: Ticket, work: Callable[[], T]) -> T:
        """The result of what waits for the desk, in a thread of its own; called off with its ticket."""
        context = contextvars.copy_context()
        context.run(TICKET.set, ticket)
        try:
            return await asyncio.get_running_loop().run_in_executor(self.threads, context.run, work)
        finally:
            ticket.cancel()

    async def watched(self, request: Request, work: Awaitable[T]) -> T:
        """The result of some work, unless its time is over or the client has gone: then it is called off."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({task, gone}, timeout=self.limits.request_seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            self.metrics.add("luthier_called_off_total", reason="disconnect" if gone.done() else "time")
            if gone.done():
                raise ApiError(499, "The client has gone.", "disconnect")
            raise TimeoutError
        finally:
            for one in (task, gone):
                one.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def write(self, request: Request, writing: Writing) -> Response:
        """A completion, streamed or whole."""
        entered = ExitStack()
        entered.enter_context(self.gate.admitted(len(writing.prompts) * writing.body.n))
        entered.callback(self._counted, writing)
        entered.callback(writing.ticket.cancel)
        if writing.body.stream:
            return Stream(self._events(writing), entered, self.limits.request_seconds)
        with entered:
            return JSONResponse(await self.watched(request, writing.whole()))

    async def _events(self, writing: Writing) -> AsyncIterator[bytes]:
        """The events of a completion; an error is the last one."""
        try:
            async for one in writing.events():
                yield one
        except asyncio.CancelledError:
            self.metrics.add("luthier_called_off_total", reason="disconnect")
            raise
        except Exception as error:
            if isinstance(error, TimeoutError):
                self.metrics.add("luthier_called_off_total", reason="time")
            yield event(as_api(error).body)

    def _counted(self, writing: Writing) -> None:
        usage = writing.usage()
        self.metrics.add("luthier_prompt_tokens_total", usage["prompt_tokens"])
        self.metrics.add("luthier_new_tokens_total", usage["completion_tokens"])
        self.tell(writing.id, model=writing.served.name, read=usage["prompt_tokens"], written=usage["completion_tokens"])
        if self.log_text:
            decode = writing.served.model.tokenizer.decode
            self.tell(writing.id, prompts=[decode(p) for p in writing.prompts],
                      answers=[decode(r.written) for r in writing.ticket.requests])

    def tell(self, what: str, **about: Any) -> None:
        """A line of the log."""
        log.info("%s %s", what, " ".join(f"{k}={v}" for k, v in about.items()))

    def arm(self, name: str) -> Served:
        """The arm of a name. Raises ApiError 404."""
        try:
            return self.catalogue.arm(name)
        except LookupError as error:
            raise ApiError(404, error.args[0], param="model", code="model_not_found") from None


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
