"""A server under load: `python benchmarks/serve_load.py --pico` (200 streaming clients), `--gemma` (16), or `--run RUN`.

Each client asks again and again, streamed, and every answer must be its own. A model that can read is told a code twice and
goes on with it, another one at every question: the answer carries the code. The tiny model of random weights carries nothing
over, so each of its clients draws by a seed of its own, and what it was answered alone before it must be answered again. An
answer is `own`, `mixed` where it is another client's, or `changed` where it is neither (rounding moved it, or the model lost
the code). The server's memory is sampled all the while; it is flat if the last third needs no more than the middle third.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2 as httpx
import measure
import psutil

CLIENTS = {"pico": 200, "gemma3-270m": 16}
READY_SECONDS = 300.0


def main() -> int:
    asked = arguments()
    with TemporaryDirectory() as work:
        base = "pico" if asked.pico else "gemma3-270m"
        run = asked.run or tuned(base, Path(work))
        clients = asked.clients or CLIENTS[base]
        result = under_load(run, clients, asked)
    result |= {"benchmark": "serve_load", "base": "of the run" if asked.run else base,
               "machine": measure.machine(measure.processors())}
    measure.write(result, asked.out, asked.json)
    measure.say(json.dumps({k: v for k, v in result.items() if k != "machine"}, indent=1))
    return 1 if result["failed"] or result["mixed"] or not result["own"] else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--pico", action="store_true", help="a tiny model of random weights")
    what.add_argument("--gemma", action="store_true", help="Gemma 3 270M; its terms must have been accepted")
    what.add_argument("--run", type=Path, help="a run of your own")
    parser.add_argument("--by-seed", action="store_true", help="tell answers apart by seeds: for a model that copies nothing")
    parser.add_argument("--clients", type=int, help="streaming clients at the same time; 200 for pico, else 16")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long they ask")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, help="file for the result")
    return parser.parse_args()


def tuned(base: str, work: Path) -> Path:
    """A run with an adapter of rank 8 on a base."""
    work.mkdir(parents=True, exist_ok=True)
    rows = [{"question": f"What is part {n}?", "answer": f"the part number {n}"} for n in range(60)]
    (work / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    luthier("tune", work / "rows.jsonl", "--base", base, "--out", work / "run", "--method", "lora:rank=8",
            "--set", "tuned.length={steps: 4}")
    return work / "run"


def luthier(*arguments: Any) -> None:
    """Run a command to its end."""
    subprocess.run([sys.executable, "-m", "luthier.cli.main", *map(str, arguments)], check=True, env=environment(),
                   stdout=subprocess.DEVNULL)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(measure.ROOT / "src"), "HF_HUB_OFFLINE": "1"}


def under_load(run: Path, clients: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Start a server, let the clients ask, and stop it."""
    with started(run, clients) as (server, url):
        memory = Memory(server.pid)
        try:
            found = asyncio.run(load(url, run.resolve().name, clients, asked, memory.begin))
        finally:
            held = memory.stop()
        return {**found, **held}


@contextmanager
def started(run: Path, clients: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server of the run that is ready, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "luthier.cli.main", "serve", str(run), "--port", str(port),
                               "--queue", str(max(64, clients)), "--seconds", "600"], env=environment(),
                              stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(server, port)
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("The server did not start. Run the same by hand to see why: luthier serve RUN")


class Memory:
    """Samples the resident memory of a process twice a second."""

    def __init__(self, pid: int) -> None:
        self.samples: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(psutil.Process(pid),))
        self._thread.start()

    def _watch(self, process: psutil.Process) -> None:
        while not self._done.wait(0.5):
            self.samples.append(process.memory_info().rss / 1e6)

    def begin(self) -> None:
        """Forget what was sampled before the load."""
        self.samples.clear()

    def stop(self) -> dict[str, float]:
        """Medians of the middle and of the last third, and what lies between them."""
        self._done.set()
        self._thread.join()
        third = max(1, len(self.samples) // 3)
        middle, last = statistics.median(self.samples[third:2 * third]), statistics.median(self.samples[-third:])
        return {"middle_mb": round(middle, 1), "last_mb": round(last, 1), "growth_mb": round(last - middle, 1),
                "peak_mb": round(max(self.samples), 1)}


class Talk:
    """What the clients ask, what they were answered, and whose it is."""

    def __init__(self, reads: bool, clients: int, tokens: int) -> None:
        self.reads, self.clients, self.tokens = reads, clients, tokens
        self.alone: dict[int, str] = {}
        self.codes = {n: "" for n in range(clients)}
        self.first: list[float] = []
        self.whole: list[float] = []
        self.count = dict.fromkeys(("tokens", "refused", "failed", "own", "changed", "mixed"), 0)

    def body(self, model: str, number: int, turn: int) -> dict[str, Any]:
        """The request of a client's turn."""
        rest = {"model": model, "max_tokens": self.tokens, "stream": True, "stream_options": {"include_usage": True}}
        if not self.reads:
            return {**rest, "prompt": f"What is said of part {number}? It is said", "temperature": 1.0, "seed": number}
        self.codes[number] = str(int(hashlib.sha256(f"{number}/{turn}".encode()).hexdigest(), 16))[:8]
        told = f"The code of this letter is {self.codes[number]}."
        return {**rest, "prompt": f"{told} {told} The code of this letter is", "temperature": 0}

    def judge(self, number: int, said: str) -> None:
        """Whose answer this is."""
        marks = self.codes if self.reads else self.alone
        own = marks[number] in said if self.reads else said == marks[number]
        other = not own and any(m and (m in said if self.reads else said == m) for n, m in marks.items() if n != number)
        self.count["own" if own else "mixed" if other else "changed"] += 1


async def load(url: str, model: str, clients: int, asked: argparse.Namespace, begin: Callable[[], None]) -> dict[str, Any]:
    """Numbers of requests, tokens and seconds, and whose the answers were."""
    talk = Talk(not (asked.pico or asked.by_seed), clients, asked.new_tokens)
    limits = httpx.Limits(max_connections=clients + 1, max_keepalive_connections=clients + 1)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        await ask(client, talk, talk.body(model, 0, 0))  # what is done once in a process
        if not talk.reads:
            for n in range(clients):
                talk.alone[n] = await ask(client, talk, talk.body(model, n, 0)) or ""
            same = clients - len(set(talk.alone.values()))
            if same or talk.count["failed"]:
                raise SystemExit(f"{same} clients are answered alike when they ask alone, {talk.count['failed']} not at all: "
                                 "whose an answer is could not be told. Ask for more tokens.")
        talk.count["tokens"], talk.first, talk.whole = 0, [], []
        begin()
        began = time.monotonic()
        await asyncio.gather(*(one(client, talk, model, n, began + asked.seconds) for n in range(clients)))
        seconds = time.monotonic() - began
    return {"clients": clients, "seconds": round(seconds, 2), "requests": len(talk.whole),
            "tokens_per_second": round(talk.count["tokens"] / seconds, 1),
            **{f"{name}_{share}_seconds": round(quantile(getattr(talk, name), share / 100), 3)
               for name in ("first", "whole") for share in (50, 95)},
            **{k: talk.count[k] for k in ("refused", "failed", "own", "changed", "mixed")}}


async def one(client: httpx.AsyncClient, talk: Talk, model: str, number: int, until: float) -> None:
    """A client that asks until the time is over."""
    turn = 1
    while time.monotonic() < until:
        said = await ask(client, talk, talk.body(model, number, turn))
        if said is not None:
            talk.judge(number, said)
        turn += 1


async def ask(client: httpx.AsyncClient, talk: Talk, body: dict[str, Any]) -> str | None:
    """One streamed answer; None where it was refused or failed."""
    began, first, said, usage = time.monotonic(), 0.0, "", None
    try:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code == 429:
                talk.count["refused"] += 1
                await asyncio.sleep(float(answer.headers["Retry-After"]))
                return None
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    first = first or time.monotonic() - began
                    event = json.loads(line.removeprefix("data: "))
                    said += "".join(c["text"] for c in event["choices"])
                    usage = event.get("usage") or usage
        talk.count["tokens"] += usage["completion_tokens"]  # type: ignore[index]  # without it the answer was cut off
    except (httpx.HTTPError, KeyError, TypeError):
        talk.count["failed"] += 1
        return None
    talk.first.append(first)
    talk.whole.append(time.monotonic() - began)
    return said


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


if __name__ == "__main__":
    sys.exit(main())
