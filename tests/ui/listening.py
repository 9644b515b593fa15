"""A page that listens, in a thread of its own."""

from __future__ import annotations

import threading
import time

import httpx2 as httpx

from luthier.ui.studio import Studio
from tests.serving.conftest import free_port


class Page:
    """A server of a studio's pages, and a client for it."""

    def __init__(self, studio: Studio, token: bytes | None = None) -> None:
        import uvicorn

        from luthier.ui.app import application

        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(uvicorn.Config(application(studio, token), host="127.0.0.1", port=self.port, ws="none",
                                                    access_log=False, log_level="warning", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until = time.monotonic() + 60
        while not self.server.started and time.monotonic() < until:
            time.sleep(0.02)
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def stop(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(20)
