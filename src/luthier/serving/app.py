"""The HTTP interface: endpoints, errors in OpenAI's form, and what is counted and logged of each request."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response

from luthier import __version__
from luthier.pipelines.asking import abstained
from luthier.pipelines.chatting import Chat
from luthier.serving.describing import describe
from luthier.serving.desk import Ticket
from luthier.serving.errors import answer_errors
from luthier.serving.layers import Guard, Told
from luthier.serving.limits import ApiError, Limits
from luthier.serving.schemas import AnswerBody, ChatBody, CompletionBody, EmbeddingBody
from luthier.serving.served import Catalogue
from luthier.serving.service import Service
from luthier.serving.writing import Writing, check_room


def application(catalogue: Catalogue, limits: Limits, token: bytes | None = None, log_text: bool = False) -> Told:
    """The ASGI application."""
    server = Service(catalogue, limits, log_text)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        server.draining = True
        await asyncio.to_thread(server.desk.close)
        server.threads.shutdown(wait=False, cancel_futures=True)

    # No pages of documentation: they load their scripts from elsewhere.
    app = FastAPI(title="Luthier", version=__version__, lifespan=life, docs_url=None, redoc_url=None,
                  description="The arms of runs, in OpenAI's dialect.")
    answer_errors(app)
    _about(app, server)
    _asked(app, server)
    describe(app, catalogue, limits, token)
    return Told(Guard(app, limits, token), server)


def _about(app: FastAPI, server: Service) -> None:
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


def _asked(app: FastAPI, server: Service) -> None:
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
            server.tell(name, question=repr(body.question), answer=repr(answer["answer"]))
        return {"id": name, "object": "answer", "model": served.name, "abstained": abstained(answer), **answer}


def _check_choices(count: int, limits: Limits) -> None:
    if count > limits.choices:
        raise ApiError(400, f"{count} answers are asked for; one request gets at most {limits.choices}.", param="n")


def _vector(vector: Any, form: str) -> Any:
    if form == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    return [float(x) for x in vector]
