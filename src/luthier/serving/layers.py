"""The layers around the endpoints: what is counted and logged, who may ask, and how long a body and a reader may take."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fastapi.responses import StreamingResponse

from luthier.engine.endpoints import LOOPBACK
from luthier.serving.errors import as_api, response_of
from luthier.serving.limits import ApiError, Limits

if TYPE_CHECKING:
    from luthier.serving.service import Service

log = logging.getLogger("luthier.serving")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Asked by machines that know no token: they tell nothing but a word.
OPEN = ("/healthz", "/readyz")
# A body over the limit is read to its end and thrown away, up to so many times the limit: who still sends, doesn't listen.
PATIENCE = 32
# Seconds that a finished stream waits for its reader.
LINGER_SECONDS = 5.0


class Told:
    """The outermost layer: counts each request and its seconds, and writes a line without any of its text."""

    def __init__(self, app: App, server: Service) -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on. What nobody caught is an answer like any other, and its text goes to no log."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, code, first = time.monotonic(), 0, 0.0

        async def heard(message: MutableMapping[str, Any]) -> None:
            nonlocal code, first
            code = message.get("status", code)
            first = first or time.monotonic() - began
            await send(message)

        try:
            await self.app(scope, receive, heard)
        except Exception as error:
            log.error("%s %s: %s", scope["method"], _path(scope), type(error).__name__)
            if self.server.log_text:
                log.exception("what was raised")
            if not code:
                await response_of(as_api(error))(scope, receive, heard)
        finally:
            self._count(scope, code, first, time.monotonic() - began)

    def _count(self, scope: Scope, code: int, first: float, seconds: float) -> None:
        path, metrics = _path(scope), self.server.metrics
        metrics.add("luthier_requests_total", endpoint=path, code=str(code))
        metrics.observe("luthier_request_seconds", seconds, endpoint=path)
        metrics.observe("luthier_first_byte_seconds", first, endpoint=path)
        if path not in (*OPEN, "/metrics"):
            self.server.tell(f"{scope['method']} {path}", code=code, seconds=f"{seconds:.3f}")


def _path(scope: Scope) -> str:
    """The endpoint as it is declared; whatever else was asked for has one name, or names would be without end."""
    return str(getattr(scope.get("route"), "path", "other"))


class Stream(StreamingResponse):
    """Server-sent events. What was entered is left in any case, and a client that does not read is not waited for."""

    def __init__(self, events: AsyncIterator[bytes], entered: ExitStack, seconds: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.entered, self.seconds = entered, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.entered:
            async with asyncio.timeout(self.seconds + LINGER_SECONDS):
                await super().__call__(scope, receive, send)


def check_known(headers: Mapping[bytes, bytes], token: bytes | None) -> None:
    """Raises ApiError unless a request with these headers may ask: by its token, or from this machine where there is none."""
    if token is None:
        # A web page may let its own name point to this machine and ask from within a browser.
        host = headers.get(b"host", b"").decode("latin-1")
        if _without_port(host) not in LOOPBACK:
            raise ApiError(403, f"This server answers for this machine only, not for the host '{host}'.", "permission_error")
        return
    scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not same(secret.strip(), token):
        raise ApiError(401, "A token is needed: Authorization: Bearer TOKEN.", "authentication_error",
                       code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def same(given: bytes, token: bytes) -> bool:
    """Whether a secret is the right one, in a time that does not tell how much of it is right."""
    return hmac.compare_digest(given, token)


class Guard:
    """The outermost layer: tokens, hosts and the size of bodies, before anything is parsed."""

    def __init__(self, app: App, limits: Limits, token: bytes | None = None) -> None:
        self.app, self.limits, self.token = app, limits, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on with its whole body, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {k.lower(): v for k, v in scope["headers"]}
        try:
            if scope["path"] not in OPEN:
                check_known(headers, self.token)
            body = await self._body(headers, receive)
        except ApiError as error:
            await response_of(error)(scope, receive, send)
            return
        except ConnectionError:
            return
        await self.app(scope, _replayed(body, receive), send)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body, within its limits of bytes and seconds."""
        most, parts, size = self.limits.max_bytes, [], 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    if size <= most:
                        parts.append(part)
                    elif size > PATIENCE * most:
                        break
        except TimeoutError:
            raise ApiError(408, f"The body was not whole after {self.limits.body_seconds:g} s.",
                           headers={"Connection": "close"}) from None
        if size > most:
            raise ApiError(413, f"The body has more than {most} bytes (--max-bytes).", code="body_too_large")
        return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, and then what comes after it: the end of the connection."""
    given = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
