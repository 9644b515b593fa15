"""What serving costs: `python benchmarks/serve_speed.py --gemma|--pico` beside the engine that it stands on.

In turns, so that a shared machine is equally unkind to all: the engine's own batch of 16 in a process of its own, 16
streaming clients, and one client, all with prompts of the same length that begin in different ways; then 4 clients with
prompts of 300 tokens, for the time to the first token. Speeds are by the clock; since others may use the machine, too, they
are given again by the processor time of the process that computes. The share of the HTTP layer is the processor time of the
server's event loop beside that of the thread that generates. Last, the memory of a second adapter of rank 8: what a process
that holds a base and one adapter grows by when it loads another one and answers with it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2 as httpx
import measure
import psutil
from serve_load import environment, quantile, started, tuned

CLIENTS, FEW, LONG = 16, 4, 300
WORDS = "bridge peg scroll clamp glue plane wood string varnish nut".split()


def main() -> int:
    asked = arguments()
    if asked.engine is not None:
        return engine(asked)
    if asked.adapter is not None:
        return adapter(asked)
    base = "pico" if asked.pico else "gemma3-270m"
    with TemporaryDirectory() as work:
        run = asked.run or tuned(base, Path(work))
        result = speeds(run, asked) | {"second_adapter_mb": second(run)}
    base = "of the run" if asked.run else base
    result = {"benchmark": "serve_speed", "base": base, "new_tokens": asked.new_tokens, "rounds": asked.rounds,
              "machine": measure.machine(measure.processors()), **result}
    measure.write(result, asked.out, asked.json)
    measure.say(json.dumps({k: v for k, v in result.items() if k != "machine"}, indent=1))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--pico", action="store_true", help="a tiny model of random weights")
    what.add_argument("--gemma", action="store_true", help="Gemma 3 270M; its terms must have been accepted")
    what.add_argument("--engine", type=Path, metavar="RUN", help="answer batches of this run, one a line of the input")
    what.add_argument("--run", type=Path, help="a run of your own, with an arm `tuned`")
    what.add_argument("--adapter", type=Path, metavar="RUN", help="the memory of its adapter, loaded a second time")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, help="file for the result")
    return parser.parse_args()


# --- the engine's side, in processes of its own ------------------------------------------------------------------


def prompt(model: Any, number: int, tokens: int) -> list[int]:
    """A prompt of so many ids that begins as no other one does."""
    text = f"{number} " + " ".join(WORDS[(number + n * n) % len(WORDS)] for n in range(tokens))
    ids = model.tokenizer(text)["input_ids"][:tokens]
    return [int(i) for i in ids]


def loaded(run: Path) -> tuple[Any, Any]:
    """The engine and the tuned model, as a server of the run has them."""
    from luthier.serving.served import Catalogue

    catalogue = Catalogue([run])
    return catalogue, catalogue.arm(f"{run.name}/tuned").model


def engine(asked: argparse.Namespace) -> int:
    """Say the prompts that clients shall ask, then answer a batch of 16 for each line that is read."""
    from luthier.engine.workshop import Engine

    catalogue, model = loaded(asked.engine)
    kept = catalogue.shelf
    own = Engine(exact=kept.exact)
    own.decisions.update(kept.decisions)
    lengths = {"short": asked.prompt_tokens, "long": min(LONG, model.limit - asked.new_tokens)}
    print(json.dumps({name: [prompt(model, n, size) for n in range(64)] for name, size in lengths.items()}), flush=True)
    decoder = f"greedy:max_new_tokens={asked.new_tokens}"
    prompts = [prompt(model, n, asked.prompt_tokens) for n in range(CLIENTS)]
    own.generate(model, prompts, decoder)
    for _ in sys.stdin:
        began, used = time.monotonic(), time.process_time()
        made = own.generate(model, prompts, decoder)
        tokens = sum(m.tokens for m in made)
        print(json.dumps({"tokens": tokens, "seconds": time.monotonic() - began, "processor": time.process_time() - used}),
              flush=True)
    return 0


def adapter(asked: argparse.Namespace) -> int:
    """Megabytes that a second adapter takes, answering with it counted in: the run's own one again, under another name."""
    from dataclasses import replace

    from luthier.core.run import Run
    from luthier.serving.shelf import Shelf

    run = Run.open(asked.adapter)
    base, one = run.step("base"), run.step("tuned")
    shelf = Shelf()
    held = []
    for tuned_one in (one, replace(one, identity=f"{one.identity}-2")):
        model = shelf.load(base, tuned_one)
        for _ in range(3):
            shelf.generate(model, [prompt(model, 1, 60)], "greedy:max_new_tokens=8")
        gc.collect()
        held.append(psutil.Process().memory_info().rss / 1e6)
    shelf.desk.close()
    print(json.dumps({"second_mb": held[1] - held[0]}))
    return 0


def second(run: Path) -> float:
    """The same, measured in a fresh process; the median of three."""
    found = []
    for _ in range(3):
        done = subprocess.run([sys.executable, __file__, "--adapter", str(run)], env=environment(), check=True,
                              stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1])["second_mb"])
    return round(statistics.median(found), 1)


# --- the clients' side ---------------------------------------------------------------------------------------------


def speeds(run: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Rounds of engine, 16 clients, one client; then the first tokens of 4."""
    command = [sys.executable, __file__, "--engine", str(run), "--new-tokens", str(asked.new_tokens), "--prompt-tokens",
               str(asked.prompt_tokens)]
    beside = subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert beside.stdin is not None and beside.stdout is not None
    try:
        prompts = json.loads(beside.stdout.readline())
        with started(run, CLIENTS) as (server, url):
            loops = threads(server.pid)
            found: dict[str, list[Any]] = {"engine": [], "many": [], "one": []}
            asyncio.run(clients(url, run, prompts["short"][:CLIENTS], asked))  # what is done once in a process
            for _ in range(asked.rounds):
                beside.stdin.write("go\n")
                beside.stdin.flush()
                found["engine"].append(json.loads(beside.stdout.readline()))
                for name, count in (("many", CLIENTS), ("one", 1)):
                    before = threads(server.pid)
                    made = asyncio.run(clients(url, run, prompts["short"][:count], asked))
                    found[name].append(made | spent(server.pid, before, threads(server.pid), loops))
            first = [f for n in range(asked.rounds) for f in asyncio.run(
                clients(url, run, prompts["long"][n * FEW:(n + 1) * FEW], asked))["first"]]
        return summary(found, first)
    finally:
        beside.stdin.close()
        beside.wait(60)


async def clients(url: str, run: Path, prompts: list[list[int]], asked: argparse.Namespace) -> dict[str, Any]:
    """One streamed answer of exactly so many tokens to each prompt, all at once."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        began = time.monotonic()

        async def one(ids: list[int]) -> tuple[int, float]:
            body = {"model": f"{run.name}/tuned", "prompt": ids, "max_tokens": asked.new_tokens, "temperature": 0,
                    "stream": True, "stream_options": {"include_usage": True}}
            first, usage = 0.0, 0
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                answer.raise_for_status()
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        first = first or time.monotonic() - began
                        usage = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", usage)
            return usage, first

        made = await asyncio.gather(*map(one, prompts))
    return {"tokens": sum(t for t, _ in made), "seconds": time.monotonic() - began, "first": [f for _, f in made]}


def threads(pid: int) -> dict[int, float]:
    """Processor seconds of each thread of a process."""
    return {t.id: t.user_time + t.system_time for t in psutil.Process(pid).threads()}


def spent(pid: int, before: dict[int, float], after: dict[int, float], known: dict[int, float]) -> dict[str, float]:
    """Processor seconds of the event loop (a process's first thread) and of all others, which generate."""
    used = {t: s - before.get(t, 0.0) for t, s in after.items()}
    return {"loop": used.get(pid, 0.0), "processor": sum(used.values())}


def summary(found: dict[str, list[Any]], first: list[float]) -> dict[str, Any]:
    """Medians over the rounds, and ratios within each."""
    def speed(one: dict[str, Any], by: str) -> float:
        return float(one["tokens"] / one[by])

    def ratio(a: str, b: str, by: str) -> float:
        return round(statistics.median(speed(x, by) / speed(y, by) for x, y in zip(found[a], found[b], strict=True)), 3)

    loop = sum(m["loop"] for m in found["many"])
    return {
        "tokens_per_second": {name: round(statistics.median(speed(r, "seconds") for r in rs), 1) for name, rs in found.items()},
        "tokens_per_processor_second": {name: round(statistics.median(speed(r, "processor") for r in rs), 1)
                                        for name, rs in found.items()},
        "many_of_engine": ratio("many", "engine", "seconds"), "many_of_engine_processor": ratio("many", "engine", "processor"),
        "many_of_one": ratio("many", "one", "seconds"), "many_of_one_processor": ratio("many", "one", "processor"),
        "http_share": round(loop / sum(m["processor"] - m["loop"] for m in found["many"]), 4),
        "first_token_seconds": {"p50": round(quantile(first, 0.5), 2), "most": round(max(first), 2), "clients": FEW,
                                "prompt_tokens": LONG}}


if __name__ == "__main__":
    sys.exit(main())
