"""Limits: who may ask, how much, and how long anybody waits. What is over a limit is refused before it costs anything."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from luthier.core.errors import LuthierError, UserError
from luthier.engine.endpoints import LOOPBACK

LONGEST_WAIT_SECONDS = 60
CONNECTIONS = 1024  # that are open at once, and that wait to be taken


class ApiError(Exception):
    """An answer that says what is wrong, in OpenAI's form."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", *, param: str | None = None,
                 code: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Closed(LuthierError):
    """Nothing is taken any more."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down.")


@dataclass(frozen=True)
class Limits:
    """What a server allows. Times are in seconds."""

    queue: int = 64  # answers that wait beside those that are being written
    rows: int = 64  # answers that are written at once
    request_seconds: float = 120.0
    body_seconds: float = 10.0
    drain_seconds: float = 30.0
    max_bytes: int = 1_000_000
    max_tokens: int = 1024  # new tokens of an answer
    choices: int = 16  # answers of one request
    texts: int = 256  # texts of one request for embeddings


class Gate:
    """Counts the answers that are under way; refuses more than rows and queue hold."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.inside = 0
        self._seconds = 1.0  # that an answer takes, a running mean

    @contextmanager
    def admitted(self, answers: int) -> Iterator[None]:
        """Room for so many answers. Raises ApiError 429 with how long to wait where there is none."""
        most = self.limits.rows + self.limits.queue
        if self.inside + answers > most:
            wait = min(LONGEST_WAIT_SECONDS, max(1, round(self._seconds * self.inside / self.limits.rows)))
            raise ApiError(429, f"{self.inside} answers are under way, and at most {most} may be. Ask again in {wait} s.",
                           "rate_limit_error", code="queue_full", headers={"Retry-After": str(wait)})
        self.inside += answers
        began = time.monotonic()
        try:
            yield
        finally:
            self.inside -= answers
            self._seconds += (time.monotonic() - began - self._seconds) / 16


def read_token(path: Path) -> bytes:
    """The secret of a token file: its one line.

    Raises:
        UserError: no such file, or not one line with at least 16 characters.
    """
    try:
        lines = path.read_bytes().split()
    except OSError as error:
        raise UserError(f"--token-file {path}: {error.strerror}.") from None
    if len(lines) != 1 or len(lines[0]) < 16:
        raise UserError(f"--token-file {path}: expected one line, a token of at least 16 characters without blanks. "
                        f"Make one: python -c 'import secrets; print(secrets.token_hex())' > {path}")
    return lines[0]


def check_host(host: str, token: bytes | None) -> None:
    """Without a token only this machine may ask. Raises UserError."""
    if token is None and host not in LOOPBACK:
        raise UserError(f"--host {host}: other machines could ask without a token. Give --token-file FILE, or leave the host "
                        f"at 127.0.0.1.")


def bound(host: str, port: int) -> socket.socket:
    """The port, taken before anything is loaded. Raises UserError where it can't be had.

    Who connects already waits until the server is ready: a port that is bound and not listened at could be bound twice.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, socket.SOCK_STREAM)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(CONNECTIONS)
    except OSError as error:
        raise UserError(f"--host {host} --port {port} can't be had: {error.strerror}. Give another one.") from None
    return taken
