"""The layer around the page: who may come in, from where, with how much, and what a browser may load.

The rule is that of `luthier serve`: with a token every request needs it, without one only this machine may ask. A browser
can't send a token by itself, so it is asked for once, and a cookie stands for it until the server ends.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastapi.responses import HTMLResponse, RedirectResponse, Response

from luthier.pipelines.report.markup import el
from luthier.serving.errors import response_of
from luthier.serving.layers import App, Receive, Scope, Send, check_known, same
from luthier.serving.limits import ApiError

log = logging.getLogger("luthier.ui")

OPEN = ("/healthz",)
LOGIN, COOKIE = "/login", "luthier"
LOGIN_BYTES, BODY_BYTES = 4_096, 1_000_000
REFUSED_SECONDS = 0.5  # that a wrong token waits for its answer
# Scripts and styles of the page stand in its text; everything else comes from this server, and nothing from any other.
POLICY = ("default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
          "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
          "form-action 'self'; frame-ancestors 'none'")
HEADERS = ((b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff"),
           (b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY"))
# Files whose names change with their content: a browser asks for them once.
FOREVER, KEPT = "/assets/", (b"cache-control", b"private, max-age=31536000, immutable")
# Gradio's ways to other servers.
ELSEWHERE = ("proxy=", "deep_link", "vibe-")


class Door:
    """Lets in who may come in, and adds to every answer what a browser must know."""

    def __init__(self, app: App, token: bytes | None, upload_bytes: int) -> None:
        self.app, self.token, self.upload_bytes = app, token, upload_bytes
        self.session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, or answer it here."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {k.lower(): v for k, v in scope["headers"]}

        async def told(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = scope["path"].startswith(FOREVER) and message["status"] == 200
                mine = (*HEADERS, KEPT) if kept else HEADERS
                names = {name for name, _ in mine}
                message["headers"] = [*((k, v) for k, v in message.get("headers", []) if k.lower() not in names), *mine]
            await send(message)

        answer = await self._refused(scope, headers, receive)
        if answer is not None:
            await answer(scope, receive, told)
            return
        most = self.upload_bytes if scope["path"].endswith("/upload") else BODY_BYTES
        try:
            await self.app(scope, _limited(receive, most), told)
        except ApiError as error:
            await response_of(error)(scope, receive, told)

    async def _refused(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Response | None:
        """The answer to who may not come in, or is about to; None for everybody else."""
        if scope["path"] in OPEN:
            return None
        if any(f"/{name}" in scope["path"] for name in ELSEWHERE):
            return response_of(ApiError(404, "There is nothing here."))
        foreign = _foreign(headers)
        if foreign and scope["method"] not in ("GET", "HEAD"):
            return response_of(ApiError(403, "This was sent by a page of another server.", "permission_error"))
        if self.token is not None and scope["path"] == LOGIN:
            return await self._login(scope, receive)
        try:
            if not same(_cookie(headers).encode(), self.session.encode()):
                check_known(headers, self.token)
        except ApiError as error:
            reads = b"text/html" in headers.get(b"accept", b"") and scope["method"] == "GET"
            return RedirectResponse(LOGIN, 303) if reads and error.status == 401 else response_of(error)
        return None

    async def _login(self, scope: Scope, receive: Receive) -> Response:
        """The page that asks for the token, and what becomes of a token that was given."""
        if scope["method"] != "POST":
            return HTMLResponse(_asking(""))
        body = b""
        limited, more = _limited(receive, LOGIN_BYTES), True
        while more:
            message = await limited()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        given = parse_qs(body.decode("latin-1")).get("token", [""])[0].strip()
        assert self.token is not None
        if not same(given.encode(), self.token):
            log.info("a wrong token was given")
            await asyncio.sleep(REFUSED_SECONDS)
            return HTMLResponse(_asking("This is not the token. It is the line of the file that --token-file names."), 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, self.session, httponly=True, samesite="strict")
        return answer


def _limited(receive: Receive, most: int) -> Receive:
    """Gives a body piece by piece. Raises ApiError where it is larger than it may be."""
    size = 0

    async def limited() -> MutableMapping[str, Any]:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise ApiError(413, f"More than {most / 1e6:,.0f} MB were sent at once (--max-mb).", code="body_too_large",
                           headers={"Connection": "close"})
        return message

    return limited


def _cookie(headers: dict[bytes, bytes]) -> str:
    try:
        found = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
    except CookieError:
        return ""
    return found[COOKIE].value if COOKIE in found else ""


def _foreign(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser says that a page of another server sent this."""
    origin = headers.get(b"origin", b"").decode("latin-1")
    return bool(origin) and urlsplit(origin).netloc != headers.get(b"host", b"").decode("latin-1")


def _asking(problem: str) -> str:
    said = el("p", problem, role="alert") if problem else None
    form = el("form", el("label", "Token ", el("input", type="password", name="token", autocomplete="current-password",
                                               required=True, autofocus=True)), " ", el("button", "Come in"), method="post")
    style = "body{font:17px/1.6 system-ui,sans-serif;max-width:30rem;margin:4rem auto;padding:0 1rem}" \
            "input,button{font:inherit;padding:.4rem .6rem}[role=alert]{color:#c0392b}"
    return ("<!doctype html>" + el("html", el("head", el("meta", charset="utf-8"), el("title", "Luthier"), el(
        "meta", name="viewport", content="width=device-width, initial-scale=1"), el(
        "meta", name="color-scheme", content="light dark"), el("style", style)), el(
        "body", el("h1", "Luthier"), said, form), lang="en"))
