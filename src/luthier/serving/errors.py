"""Errors as clients hear them: one form, OpenAI's, and not a word of what was sent."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from luthier.core.errors import LuthierError, UserError, nearest
from luthier.serving.limits import ApiError, Closed
from luthier.serving.schemas import NEUTRAL, AnswerBody, Body, ChatBody, CompletionBody, EmbeddingBody

# Characters of a field's name that an error repeats.
SHOWN = 80
BODIES: dict[str, type[Body]] = {"/v1/chat/completions": ChatBody, "/v1/completions": CompletionBody,
                                 "/v1/embeddings": EmbeddingBody, "/v1/answers": AnswerBody}


def answer_errors(app: FastAPI) -> None:
    """Every error in one form, without a word of what was sent."""
    async def answered(request: Request, error: Exception) -> Response:
        return response_of(as_api(error, request.url.path))

    for kind in (ApiError, LuthierError, TimeoutError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answered)


def response_of(error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


def as_api(error: Exception, path: str = "") -> ApiError:
    """What a client is told of an error of a request to `path`."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return invalid(error.errors()[0], path)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    if isinstance(error, TimeoutError):
        return ApiError(504, "The answer was not whole in time (--seconds).", "timeout_error", code="timeout")
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    if isinstance(error, Closed):
        return ApiError(503, str(error), "server_error", headers={"Retry-After": "5"})
    return ApiError(500, str(error) if isinstance(error, LuthierError) else "Something went wrong here.", "server_error")


def invalid(found: dict[str, Any], path: str = "") -> ApiError:
    """The first thing that is wrong with a body, by its place."""
    if found["type"] == "json_invalid":
        return ApiError(400, f"The body is no JSON: {found['ctx']['error']} at character {found['loc'][-1]}.")
    place = [str(p) for p in found["loc"] if p != "body"]
    where = ".".join(place)[:SHOWN]
    if found["type"] == "extra_forbidden" and len(place) == 1:
        if where in NEUTRAL:
            taken = " or ".join(json.dumps(value) for value in NEUTRAL[where])
            return ApiError(400, f"'{where}' is not done here; taken, and passed over, is {taken}.", param=where)
        legal = BODIES[path].model_fields if path in BODIES else ()
        return ApiError(400, f"'{where}' is no field here. {nearest(where, legal)}", param=where)
    return ApiError(400, f"{where + ': ' if where else ''}{found['msg']}", param=where or None)
