"""A hub on 127.0.0.1: the few addresses of the hub's API that a download asks for, over folders of this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class Hub:
    """Repositories by name -> folder; `gated` ones want the token; `asked` holds (path, authorization) of each request."""

    def __init__(self) -> None:
        self.repositories: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.token = ""
        self.sizes: dict[str, int] = {}  # what is claimed of a file, where that is not its size
        self.asked: list[tuple[str, str]] = []
        self.address = ""

    def size(self, file: Path) -> int:
        return self.sizes.get(file.name, file.stat().st_size)


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((path, self.headers.get("Authorization", "")))
            repo, rest = _parts(path)
            folder = hub.repositories.get(repo)
            if folder is None:
                return self._say(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if repo in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._say(403, b"{}", {"X-Error-Code": "GatedRepo"})
            kind, revision, *name = rest
            if revision not in ("main", COMMIT):
                return self._say(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            if kind == "revision":
                listed = [{"rfilename": p.relative_to(folder).as_posix(), "size": hub.size(p)} for p in files]
                return self._json({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": listed, "private": False})
            if kind == "tree":
                return self._json([{"type": "file", "path": p.relative_to(folder).as_posix(), "size": p.stat().st_size,
                                    "oid": _digest(p)} for p in files])
            file = folder / "/".join(name)
            if not file.is_file():
                return self._say(404, b"", {"X-Error-Code": "EntryNotFound"})
            self._say(200, file.read_bytes(), {"X-Repo-Commit": COMMIT, "ETag": f'"{_digest(file)}"'})

        def _json(self, value: Any) -> None:
            self._say(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _say(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _parts(path: str) -> tuple[str, list[str]]:
    """Repository and the rest of `/api/models/ORG/NAME/…` or `/ORG/NAME/resolve/…`."""
    parts = path.removeprefix("/api/models").strip("/").split("/")
    return "/".join(parts[:2]), parts[2:]


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
