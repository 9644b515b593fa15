"""Two runs on one base, and a server of both that listens."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch

from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.engine.executor import execute
from luthier.serving.limits import Limits
from luthier.serving.served import Catalogue

PARTS = "clamp glue plane wood string varnish peg nut bridge scroll".split()
ARM = {"use": "evaluate", "shots": [2], "decoder": "greedy:max_new_tokens=6", "sets": ["unseen"]}
READS = {"index": "index", "encoder": "encoder"}
FIT = {"use": "fit", "tasks": [{"data": "split.train", "objective": "supervised"}], "method": "lora:rank=4",
       "learning_rate": 0.05, "length": {"steps": 6}, "inputs": {"base": "base", "split": "split"}}
STEPS: dict[str, Any] = {
    "base": {"use": "base", "model": "pico"}, "encoder": {"use": "base", "model": "pico-encoder"},
    "documents": {"use": "ingest", "paths": []},
    "index": {"use": "index", "inputs": {"documents": "documents", "encoder": "encoder"}},
    "questions": {"use": "synthesize", "sources": ["headings"], "inputs": {"documents": "documents"}},
    "split": {"use": "split", "inputs": {"questions": "questions"}},
    "tuned": FIT,
    "plain": {**ARM, "arm": "base", "inputs": {"base": "base", "examples": "split"}},
    "knows": {**ARM, "arm": "tuned", "shots": [0], "inputs": {"base": "base", "tuned": "tuned", "examples": "split"}},
    "reads": {**ARM, "arm": "tuned+retrieval", "passages": 2, "instructions": ["Answer from the passages."],
              "inputs": {"base": "base", "tuned": "tuned", "examples": "split", **READS}},
}


@pytest.fixture(scope="session", autouse=True)
def threads() -> Iterator[None]:
    """An engine of its own sets the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_run(folder: Path, engine: Any, seed: int, said: str = "is told in the book") -> Run:
    (folder / "docs").mkdir(parents=True)
    for part in PARTS:
        (folder / "docs" / f"{part}.md").write_text(
            f"# Parts\n\n## The {part}\n\nThe use of it {said} of the {part}.\n\n"
            f"A {part} is a thing that {part}s of old makers have.\n")
    steps = {**STEPS, "documents": {**STEPS["documents"], "paths": [str(folder / "docs")]}}
    return execute(Recipe({"name": "served", "seed": seed, "steps": steps}), folder / f"run{seed}", engine)


@pytest.fixture(scope="session")
def runs(engine, tmp_path_factory) -> list[Run]:
    folder = tmp_path_factory.mktemp("served")
    return [make_run(folder / str(seed), engine, seed) for seed in (3, 4)]


@pytest.fixture(scope="session")
def catalogue(runs) -> Iterator[Catalogue]:
    made = Catalogue([run.folder for run in runs])
    yield made
    if made.shelf.desk.alive:
        made.shelf.desk.close()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Listening:
    """A server in a thread of its own, and a client for it."""

    def __init__(self, catalogue: Catalogue, limits: Limits, token: bytes | None = None, **rest: Any) -> None:
        pytest.importorskip("fastapi")
        pytest.importorskip("uvicorn")
        from luthier.serving.app import application
        from luthier.serving.server import made

        self.port = free_port()
        self.app = application(catalogue, limits, token, **rest)
        self.server = made(self.app, "127.0.0.1", self.port, limits)
        self.server.config.lifespan = "off"  # the desk is shared by all servers of these tests
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until = time.monotonic() + 10
        while not self.server.started and time.monotonic() < until:
            time.sleep(0.01)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)

    @property
    def service(self) -> Any:
        return self.app.server

    def stop(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(10)


@pytest.fixture
def listen(catalogue) -> Iterator[Any]:
    """`listen(limits, token)`: a server of this test."""
    opened = []

    def start(limits: Limits = Limits(), token: bytes | None = None, **rest: Any) -> Listening:
        opened.append(Listening(catalogue, limits, token, **rest))
        return opened[-1]

    yield start
    for one in opened:
        one.stop()


@pytest.fixture(scope="session")
def served(catalogue) -> Iterator[Listening]:
    """One server for all tests that leave it as it is."""
    one = Listening(catalogue, Limits(max_tokens=256))
    yield one
    one.stop()


@pytest.fixture(scope="session")
def client(served) -> Any:
    return served.client


@pytest.fixture
def serve(runs, tmp_path) -> Iterator[Any]:
    """`serve(*options, run, port)`: start the command; gives the process, the port and the log once it is ready."""
    pytest.importorskip("uvicorn")
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str, run: Path | None = None, port: int = 0) -> Any:
        port = port or free_port()
        log = tmp_path / f"log{len(started)}.txt"

        with log.open("wb") as told:
            process = subprocess.Popen(
                [sys.executable, "-m", "luthier.cli.main", "serve", str(run or runs[0].folder), "--port", str(port), *options],
                stderr=told, env={**os.environ, "OMP_NUM_THREADS": "1"})
        started.append(process)
        until = time.monotonic() + 300
        while time.monotonic() < until and process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    return process, port, log
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(log.read_text())

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
