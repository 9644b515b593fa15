"""The description of the interface (OpenAPI): what is legal on this server, and every status with the form of its answer."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from luthier.serving import replies
from luthier.serving.limits import Limits
from luthier.serving.schemas import only_with
from luthier.serving.served import Catalogue

PLACE = "#/components/schemas/{model}"
ANSWERS: dict[str, type[replies.Reply]] = {
    "/v1/models": replies.Names, "/v1/models/{name}": replies.Name, "/v1/chat/completions": replies.Turns,
    "/v1/completions": replies.Texts, "/v1/embeddings": replies.Vectors, "/v1/answers": replies.Answer}
STATUSES = {400: "The body, or a field of it, is not legal", 401: "No token, or a wrong one",
            403: "Asked under the name of another host", 404: "No such name", 408: "The body did not come to its end",
            413: "The body is too large", 429: "As many answers are under way as may be; Retry-After says when to ask again",
            503: "The server is shutting down", 504: "The answer was not whole in time"}
READING, ASKING = (404,), (400, 404, 408, 413, 429, 503, 504)
TEXT = {"text/plain": {"schema": {"type": "string"}}}


def describe(app: FastAPI, catalogue: Catalogue, limits: Limits, token: bytes | None) -> None:
    """Let the application describe itself with the names, limits and statuses of this server."""
    @cache
    def described() -> dict[str, Any]:
        made = deepcopy(FastAPI.openapi(app))
        schemas = made["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        _bodies(schemas, catalogue, limits)
        kinds: list[type[BaseModel]] = [*ANSWERS.values(), replies.Error]
        _, told = models_json_schema([(kind, "serialization") for kind in kinds], ref_template=PLACE)
        schemas |= told["$defs"]
        for path, methods in made["paths"].items():
            for name, method in methods.items():
                method["responses"] = _responses(path, name, token)
        made["paths"]["/v1/models/{name}"]["get"]["parameters"][0]["schema"]["enum"] = catalogue.names()
        if token is not None:
            made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            for path in set(made["paths"]) - {"/healthz", "/readyz"}:
                for method in made["paths"][path].values():
                    method["security"] = [{"token": []}]
        return made

    app.openapi = described  # type: ignore[method-assign]


def _responses(path: str, method: str, token: bytes | None) -> dict[str, Any]:
    """What one method of a path answers."""
    if path in ("/healthz", "/readyz"):
        return {"200": {"description": "Yes", "content": TEXT}, "503": {"description": "No", "content": TEXT}}
    good = _content(ANSWERS[path]) if path in ANSWERS else TEXT
    if path.endswith("completions"):
        good = {**good, "text/event-stream": {}}  # its form is OpenAI's; a schema of a body says nothing of events
    statuses = [401 if token is not None else 403, *(ASKING if method == "post" else READING if "{" in path else ())]
    return {"200": {"description": "What was asked for", "content": good},
            **{str(s): {"description": STATUSES[s], "content": _content(replies.Error)} for s in sorted(statuses)}}


def _content(kind: type[replies.Reply]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": PLACE.format(model=kind.__name__)}}}


def _bodies(schemas: dict[str, Any], catalogue: Catalogue, limits: Limits) -> None:
    """Names and limits of this server, and which fields depend on which."""
    names = catalogue.names()
    encoders = [n for n in names if _is(catalogue.encoder, n)]
    writers = [n for n in names if _is(catalogue.arm, n)]
    readers = [n for n in writers if catalogue.arm(n).passages]
    for name in ("ChatBody", "CompletionBody", "AnswerBody", "EmbeddingBody"):
        legal = encoders if name == "EmbeddingBody" else writers
        schemas[name]["properties"]["model"]["enum"] = legal
    for name in ("ChatBody", "CompletionBody"):
        fields = schemas[name]["properties"]
        fields["n"]["maximum"] = limits.choices
        schemas[name]["allOf"] = [only_with("stream_options", "stream")]
        for field in {"max_tokens", "max_completion_tokens"} & fields.keys():
            for kind in fields[field].get("anyOf", [fields[field]]):
                if kind["type"] == "integer":
                    kind["maximum"] = limits.max_tokens
    top = min(int(catalogue.arm(n).model.module.config.vocab_size) for n in writers)
    _, _, ids, several = schemas["CompletionBody"]["properties"]["prompt"]["anyOf"]
    for one in (ids, several["items"]):
        one["items"]["maximum"] = top - 1
    chat = schemas["ChatBody"]
    chat["allOf"] += [only_with("top_logprobs", "logprobs"),
                      {"anyOf": [{"properties": {f: {"type": "null"}}} for f in ("max_tokens", "max_completion_tokens")]}]
    many = schemas["EmbeddingBody"]["properties"]["input"]["anyOf"][1]
    many["maxItems"] = limits.texts
    schemas["AnswerBody"]["allOf"] = [{"anyOf": [{"properties": {"passages": {"type": "null"}}},
                                                 {"properties": {"model": {"enum": readers}}}]}]


def _is(look: Any, name: str) -> bool:
    try:
        look(name)
    except LookupError:
        return False
    return True
