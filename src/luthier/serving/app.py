"""The HTTP interface: endpoints, errors in OpenAI's form, and what is counted and logged of each request."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from typing import Any, TypeVar

import numpy as np
import psutil
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from luthier import __version__
from luthier.core.citing import ABSTENTION
from luthier.core.errors import LuthierError
from luthier.pipelines.chatting import Chat
from luthier.serving.desk import TICKET, Ticket
from luthier.serving.errors import as_api, response_of
from luthier.serving.layers import Guard, Stream, Told
from luthier.serving.limits import ApiError, Gate, Limits
from luthier.serving.metrics import Metrics
from luthier.serving.schemas import AnswerBody, ChatBody, CompletionBody, EmbeddingBody
from luthier.serving.served import Catalogue, Served
from luthier.serving.writing import Writing, check_room, event

log = logging.getLogger("luthier.serving")
T = TypeVar("T")


class Server:
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


def application(catalogue: Catalogue, limits: Limits, token: bytes | None = None, log_text: bool = False) -> Told:
    """The ASGI application."""
    server = Server(catalogue, limits, log_text)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        server.draining = True
        await asyncio.to_thread(server.desk.close)
        server.threads.shutdown(wait=False, cancel_futures=True)

    # No pages of documentation: they load their scripts from elsewhere.
    app = FastAPI(title="Luthier", version=__version__, lifespan=life, docs_url=None, redoc_url=None,
                  description="The arms of runs, in OpenAI's dialect.")
    _errors(app)
    _about(app, server)
    _asked(app, server)
    return Told(Guard(app, limits, token), server)


def _about(app: FastAPI, server: Server) -> None:
    """What machines ask about the server itself."""
    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> Response:
        """Whether the process computes."""
        return PlainTextResponse("ok" if server.desk.alive else "stopped", 200 if server.desk.alive else 503)

    @app.get("/readyz", response_class=PlainTextResponse)
    async def readyz() -> Response:
        """Whether new requests are welcome."""
        ready = server.desk.alive and not server.draining
        return PlainTextResponse("ready" if ready else "draining", 200 if ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return PlainTextResponse(server.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The names that may be asked."""
        return {"object": "list", "data": [
            {"id": name, "object": "model", "created": 0, "owned_by": "luthier"} for name in server.catalogue.names()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One name."""
        if name not in server.catalogue.names():
            server.arm(name)
        return {"id": name, "object": "model", "created": 0, "owned_by": "luthier"}


def _asked(app: FastAPI, server: Server) -> None:
    """What people ask."""
    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatBody, request: Request) -> Response:
        """The model of an arm goes on with a conversation."""
        served = server.arm(body.model)
        messages = [m.said for m in body.messages]
        prompt = served.conversation(messages)
        most = check_room(served, [prompt], body.max_tokens or body.max_completion_tokens, server.limits)
        _check_choices(body.n, server.limits)
        # A base that was found to be best asked with answers of one line is cut there, as in its evaluation.
        line = ("\n",) if served.alone(messages) and served.prompting.stop == "newline" else ()
        return await server.write(request, Writing(
            served, server.desk, "chat", body, [prompt], most, (body.top_logprobs or 0) if body.logprobs else None,
            server.limits.request_seconds, strip=True, stops=(*body.stops, *line)))

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionBody, request: Request) -> Response:
        """The model of an arm goes on with texts."""
        served = server.arm(body.model)
        top = int(served.model.module.config.vocab_size)
        prompts = []
        for n, prompt in enumerate(body.prompts):
            if not isinstance(prompt, str) and not all(0 <= i < top for i in prompt):
                raise ApiError(400, f"prompt {n} has an id outside of 0 … {top - 1}.", param="prompt")
            prompts.append(served.text(prompt) if isinstance(prompt, str) else prompt)
        most = check_room(served, prompts, body.max_tokens, server.limits)
        _check_choices(body.n * len(prompts), server.limits)
        return await server.write(request, Writing(
            served, server.desk, "text", body, prompts, most, body.logprobs, server.limits.request_seconds,
            stops=tuple(body.stops)))

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingBody, request: Request) -> dict[str, Any]:
        """Vectors of length 1 by the encoder of a run."""
        try:
            encoder = server.catalogue.encoder(body.model)
        except LookupError as error:
            raise ApiError(404, error.args[0], param="model", code="model_not_found") from None
        texts = body.texts
        if not 1 <= len(texts) <= server.limits.texts or "" in texts:
            raise ApiError(400, f"input has {len(texts)} texts; 1 to {server.limits.texts} are legal, none of them empty.",
                           param="input")
        counts = [len(encoder.tokenizer(t, verbose=False)["input_ids"]) for t in texts]
        if max(counts) > encoder.limit:
            raise ApiError(400, f"input {counts.index(max(counts))} has {max(counts)} tokens; the encoder reads "
                           f"{encoder.limit}.", param="input", code="context_length_exceeded")
        with server.gate.admitted(1):
            vectors = await server.watched(request, server.aside(
                Ticket(), lambda: server.catalogue.shelf.embed(encoder, texts, encoder.limit)))
        server.metrics.add("luthier_prompt_tokens_total", sum(counts))
        return {"object": "list", "model": body.model, "usage": {"prompt_tokens": sum(counts), "total_tokens": sum(counts)},
                "data": [{"object": "embedding", "index": n, "embedding": _vector(v, body.encoding_format)}
                         for n, v in enumerate(vectors)]}

    @app.post("/v1/answers")
    async def answers(body: AnswerBody, request: Request) -> dict[str, Any]:
        """What `luthier ask` and `luthier chat` give: an answer from the documents, its passages and citations."""
        served = server.arm(body.model)
        request.state.model = served.name
        served.harmless(body.question, "question")
        history = [h.model_dump() for h in body.history]
        chat = Chat(served.asker, served.arm, body.passages, history)
        with server.gate.admitted(1):
            answer = await server.watched(request, server.aside(Ticket(), lambda: chat.ask(body.question)))
        name = f"ans-{secrets.token_hex(12)}"
        server.tell(name, model=served.name, passages=len(answer["passages"]))
        if server.log_text:
            server.tell(name, question=body.question, answer=answer["answer"])
        return {"id": name, "object": "answer", "model": served.name, "abstained": abstained(answer), **answer}


def abstained(answer: dict[str, Any]) -> bool:
    """Whether an answer says that nothing was found."""
    return bool(answer["answer"].strip().rstrip(".").lower() == ABSTENTION)


def _check_choices(count: int, limits: Limits) -> None:
    if count > limits.choices:
        raise ApiError(400, f"{count} answers are asked for; one request gets at most {limits.choices}.", param="n")


def _vector(vector: Any, form: str) -> Any:
    if form == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    return [float(x) for x in vector]


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _errors(app: FastAPI) -> None:
    """Every error in one form, without a word of what was sent."""
    async def answered(request: Request, error: Exception) -> Response:
        return response_of(as_api(error))

    for kind in (ApiError, LuthierError, TimeoutError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answered)
