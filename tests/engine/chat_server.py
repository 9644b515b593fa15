"""A chat model behind an OpenAI-compatible address of this machine, as tests ask it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Answers what `say` makes of a prompt, `said: PROMPT` at first; `status` holds codes for the first requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.say: Callable[[str], str] = "said: {}".format
        self.asked, self.headers_seen, self.status, self.most, self.now = [], [], [], 0, 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with server.lock:
            server.now += 1
            server.most = max(server.most, server.now)
            server.asked.append(prompt)
            server.headers_seen.append(self.headers.get("Authorization"))
            code = server.status.pop(0) if server.status else 200
        threading.Event().wait(0.02)
        said = {"choices": [{"message": {"content": server.say(prompt)}}]} if code == 200 else {"error": "key sesame bad"}
        data = json.dumps(said).encode()
        with server.lock:
            server.now -= 1
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "http://127.0.0.1:9/v1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """A server that answers until the block ends."""
    made = Server()
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()


def address(server: Server) -> str:
    """Its address up to and including /v1."""
    return f"http://127.0.0.1:{server.server_port}/v1"
