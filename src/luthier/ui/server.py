"""The process behind the page: a port that is taken first, signals, and an end that leaves the runs alone."""

from __future__ import annotations

import logging
import signal
import socket
import sys

import uvicorn

from luthier.ui.app import application
from luthier.ui.studio import Studio

GRACE_SECONDS = 2


def run(studio: Studio, listening: socket.socket, token: bytes | None = None) -> None:
    """Serve until a signal. Runs that were started from the page go on; the next server of the folder shows them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("luthier.ui")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    host, port, *_ = listening.getsockname()
    server = uvicorn.Server(uvicorn.Config(
        application(studio, token), host=host, port=port, ws="none", access_log=False, log_level="warning",
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=GRACE_SECONDS))
    # The server hands a signal on when it has ended by it; to have ended is all that was asked.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    logger.info("http://%s:%d shows the runs of %s", f"[{host}]" if ":" in host else host, port, studio.root)
    server.run(sockets=[listening])
