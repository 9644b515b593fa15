"""The server process: connections that keep their time, signals, and an end that lets answers finish."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from luthier.serving.app import application
from luthier.serving.limits import CONNECTIONS, Limits
from luthier.serving.served import Catalogue

HEADER_SECONDS = 10.0
# Longer than the pools of usual clients keep a connection: it is they who close it, so no request meets a closing one.
KEEP_ALIVE_SECONDS = 30


class Connection(H11Protocol):
    """A connection that is closed where the head of a request does not come to its end: half-open ones must not pile up."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to look after it."""
        super().connection_made(transport)
        # The request that was answered last, as of the last look; the connection itself while one is being answered.
        self._answered: Any = None
        self._look = self.loop.call_later(HEADER_SECONDS, self._looked)

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        self._look.cancel()
        super().connection_lost(exc)

    def _looked(self) -> None:
        """Close it where nothing was asked since the last look, unless the timer of idle connections runs."""
        between = self.cycle is None or (self.cycle.response_complete and self.timeout_keep_alive_task is None)
        if between and self.cycle is self._answered:
            self.transport.close()
            return
        self._answered = self.cycle if between else self
        self._look = self.loop.call_later(HEADER_SECONDS, self._looked)


def made(app: Any, host: str, port: int, limits: Limits) -> uvicorn.Server:
    """A server that is not yet started."""
    return uvicorn.Server(uvicorn.Config(
        app, host=host, port=port, http=Connection, loop="asyncio", ws="none", access_log=False, log_level="warning",
        server_header=False, proxy_headers=False, limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=int(limits.drain_seconds)))


def run(catalogue: Catalogue, listening: socket.socket, limits: Limits, token: bytes | None = None, log_text: bool = False
        ) -> None:
    """Serve until a signal: SIGINT and SIGTERM let what is being written finish for `limits.drain_seconds`, then end it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("luthier.serving")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    host, port, *_ = listening.getsockname()
    server = made(application(catalogue, limits, token, log_text), host, port, limits)
    # The server hands a signal on when it has ended by it; to have ended is all that was asked.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    logger.info("http://%s:%d serves %s", f"[{host}]" if ":" in host else host, port, ", ".join(catalogue.names()))
    server.run(sockets=[listening])
