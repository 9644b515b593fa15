"""A server under load: `python benchmarks/serve_load.py --pico` (200 streaming clients), `--gemma` (16), or `--run RUN`.

Each client asks again and again, streamed, with a nonce in its prompt, so no two prompts are alike. Some prompts are asked
alone before and again under load: their answers must be the same, or answers of different clients were mixed. The server's
memory is sampled all the while; it is flat if the last third needs no more than the middle third.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2 as httpx
import measure
import psutil

CLIENTS = {"pico": 200, "gemma3-270m": 16}
CONTROLS = 8
READY_SECONDS = 300.0


def main() -> int:
    asked = arguments()
    with TemporaryDirectory() as work:
        base = "pico" if asked.pico else "gemma3-270m"
        run = asked.run or tuned(base, Path(work))
        clients = asked.clients or CLIENTS[base]
        result = under_load(run, clients, asked)
    result |= {"base": "of the run" if asked.run else base, "machine": measure.machine(measure.processors())}
    measure.write(result, asked.out, asked.json)
    measure.say(json.dumps({k: v for k, v in result.items() if k != "machine"}, indent=1))
    return 1 if result["failed"] or result["mixed"] else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--pico", action="store_true", help="a tiny model of random weights")
    what.add_argument("--gemma", action="store_true", help="Gemma 3 270M; its terms must have been accepted")
    what.add_argument("--run", type=Path, help="a run of your own")
    parser.add_argument("--clients", type=int, help="streaming clients at the same time; 200 for pico, else 16")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long they ask")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, help="file for the result")
    return parser.parse_args()


def tuned(base: str, work: Path) -> Path:
    """A run with a small adapter on a base."""
    rows = [{"question": f"What is part {n}?", "answer": f"the part number {n}"} for n in range(60)]
    (work / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    luthier("tune", work / "rows.jsonl", "--base", base, "--out", work / "run", "--set", "tuned.length={steps: 4}")
    return work / "run"


def luthier(*arguments: Any) -> None:
    """Run a command to its end."""
    subprocess.run([sys.executable, "-m", "luthier.cli.main", *map(str, arguments)], check=True, env=environment(),
                   stdout=subprocess.DEVNULL)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(measure.ROOT / "src"), "HF_HUB_OFFLINE": "1"}


def under_load(run: Path, clients: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Start a server, let the clients ask, and stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "luthier.cli.main", "serve", str(run), "--port", str(port),
                               "--queue", str(max(64, clients))], env=environment(), stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(server, port)
        memory = Memory(server.pid)
        found = asyncio.run(load(f"http://127.0.0.1:{port}", run.resolve().name, clients, asked))
        return {**found, **memory.stop()}
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

    def stop(self) -> dict[str, float]:
        """Medians of the middle and of the last third, and what lies between them."""
        self._done.set()
        self._thread.join()
        third = max(1, len(self.samples) // 3)
        middle, last = statistics.median(self.samples[third:2 * third]), statistics.median(self.samples[-third:])
        return {"middle_mb": round(middle, 1), "last_mb": round(last, 1), "growth_mb": round(last - middle, 1),
                "peak_mb": round(max(self.samples), 1)}


async def load(url: str, model: str, clients: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Numbers of requests, tokens and seconds, and how many answers failed or were another client's."""
    tally: dict[str, Any] = {"first": [], "whole": [], "tokens": 0, "refused": 0, "failed": 0, "mixed": 0, "compared": 0}
    limits = httpx.Limits(max_connections=clients + 1, max_keepalive_connections=clients + 1)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        alone = {n: await ask(client, model, f"control {n}", asked.new_tokens, tally) for n in range(CONTROLS)}
        tally |= {"first": [], "whole": [], "tokens": 0}
        began = time.monotonic()
        await asyncio.gather(*(one(client, model, n, began + asked.seconds, alone, asked.new_tokens, tally)
                               for n in range(clients)))
        seconds = time.monotonic() - began
    return {"clients": clients, "seconds": round(seconds, 2), "requests": len(tally["whole"]),
            "tokens_per_second": round(tally["tokens"] / seconds, 1),
            **{f"{name}_{share}_seconds": round(quantile(tally[name], share / 100), 3)
               for name in ("first", "whole") for share in (50, 95)},
            **{k: tally[k] for k in ("refused", "failed", "compared", "mixed")}}


async def one(client: httpx.AsyncClient, model: str, number: int, until: float, alone: dict[int, str | None], tokens: int,
              tally: dict[str, Any]) -> None:
    """A client that asks until the time is over; every fourth question is one whose answer is known."""
    turn = 0
    while time.monotonic() < until:
        control = (number + turn) % CONTROLS if turn % 4 == 3 else None
        nonce = f"nonce {number}-{turn}" if control is None else f"control {control}"
        said = await ask(client, model, nonce, tokens, tally)
        if control is not None and said is not None:
            tally["compared"] += 1
            tally["mixed"] += said != alone[control]
        turn += 1


async def ask(client: httpx.AsyncClient, model: str, nonce: str, tokens: int, tally: dict[str, Any]) -> str | None:
    """One streamed answer; None where it was refused or failed."""
    body = {"model": model, "prompt": f"What is said of {nonce}? It is said", "max_tokens": tokens, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True}}
    began, first, said, usage = time.monotonic(), 0.0, "", None
    try:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code == 429:
                tally["refused"] += 1
                await asyncio.sleep(float(answer.headers["Retry-After"]))
                return None
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    first = first or time.monotonic() - began
                    event = json.loads(line.removeprefix("data: "))
                    said += "".join(c["text"] for c in event["choices"])
                    usage = event.get("usage") or usage
        tally["tokens"] += usage["completion_tokens"]  # type: ignore[index]  # without it the answer was cut off
    except (httpx.HTTPError, KeyError, TypeError):
        tally["failed"] += 1
        return None
    tally["first"].append(first)
    tally["whole"].append(time.monotonic() - began)
    return said


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


if __name__ == "__main__":
    sys.exit(main())
