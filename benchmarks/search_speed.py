"""Search by the number of passages: `python benchmarks/search_speed.py [--sizes 10000,100000] [--json]`.

For each size a process of its own makes an index (clustered random vectors stand for the encoder's, the text is drawn from
a list of words), another one opens it and answers queries that it has not seen: by vector, fused with full text, and fused
with the query embedded by MiniLM first. Reported are medians and 95th percentiles of single queries, their processor time,
the recall that the index recorded, the peak of the resident memory of both processes, and the size on disk. Sizes already
in the result file are kept, so that the curve may be measured in pieces. `--pico` makes 300 passages.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure

SIZES = (10_000, 100_000, 300_000, 1_000_000)
WIDTH, CLUSTER, NOISE = 384, 100, 0.5
WORDS, PASSAGE_WORDS, QUERY_WORDS = 20_000, 60, 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of passages, comma-separated")
    parser.add_argument("--queries", type=int, default=200, help="single queries of each kind")
    parser.add_argument("--pico", action="store_true", help="300 passages: to see that it runs")
    parser.add_argument("--threads", type=int, default=measure.processors())
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, help="file for the result; benchmarks/results/search_speed.json if left out")
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "FOLDER", "SIZE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        what, folder, size = asked.child
        answer = build(Path(folder), int(size)) if what == "build" else ask(Path(folder), int(size), asked.queries)
        print(json.dumps({**answer, "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)}))
        return 0
    out = asked.out or measure.RESULTS / "search_speed.json"
    sizes = {s["passages"]: s for s in json.loads(out.read_text())["sizes"]} if out.exists() and not asked.pico else {}
    for size in [300] if asked.pico else map(int, asked.sizes.split(",")):
        with tempfile.TemporaryDirectory(prefix="luthier-search-") as folder:
            built = child("build", folder, size, asked)
            disk = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
            found = child("ask", folder, size, asked)
        sizes[size] = {"passages": size, "load": os.getloadavg()[0], "disk_mb": round(disk / 1e6, 1), "build": built, **found}
        measure.say(f"{size}: {sizes[size]}")
        result = {"benchmark": "search_speed", "pico": asked.pico, "machine": measure.machine(asked.threads),
                  "queries": asked.queries, "sizes": [sizes[s] for s in sorted(sizes)]}
        measure.write(result, out, False)
    if asked.json:
        print(json.dumps(result))
    return 0


def child(what: str, folder: str, size: int, asked: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own measured."""
    command = [sys.executable, __file__, "--child", what, folder, str(size), "--queries", str(asked.queries)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False,
                            env={**os.environ, "OMP_NUM_THREADS": str(asked.threads)})
    if answer.returncode:
        raise SystemExit(answer.stderr)
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


class Standing:
    """An encoder's place: vectors [texts, WIDTH] around `size / CLUSTER` centres instead of what a text says."""

    identity, name, width, limit = "generated", "generated", WIDTH, 256

    def __init__(self, size: int, seed: int) -> None:
        import numpy as np

        centres = np.random.default_rng(0)
        self.centres = centres.standard_normal((max(1, size // CLUSTER), WIDTH), dtype="float32")
        self.draw = np.random.default_rng(seed)

    @staticmethod
    def tokenizer(text: str) -> dict[str, list[str]]:
        """A word is a token."""
        return {"input_ids": text.split()}

    def embed(self, model: Any, texts: list[str], max_tokens: int = 256) -> Any:
        """As `Engine.embed`."""
        import numpy as np

        near = self.centres[self.draw.integers(0, len(self.centres), len(texts))]
        made = near + NOISE * self.draw.standard_normal(near.shape, dtype="float32")
        return made / np.linalg.norm(made, axis=1, keepdims=True)


def context(folder: Path, encoder: Any, engine: Any) -> Any:
    """What a retriever is handed."""
    from luthier.core.files import Journal
    from luthier.core.rng import Rng
    from luthier.core.step import Ctx

    return Ctx(Rng(0), folder, Journal(folder / "journal.jsonl"), engine=engine, roles={"encoder": encoder})


def vocabulary() -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 9))) for _ in range(WORDS)]


def passages(size: int) -> Iterator[Any]:
    """Passages of PASSAGE_WORDS words, few of them frequent and most of them rare, as in a language."""
    from luthier.core.example import Passage

    words, draw = vocabulary(), random.Random(1)
    for number in range(size):
        text = " ".join(words[int(WORDS ** draw.random()) - 1] for _ in range(PASSAGE_WORDS))
        yield Passage(f"p{number:07d}", text, f"d{number // 100}.md", f"d{number // 100}.md#", ("Manual",), PASSAGE_WORDS)


def build(folder: Path, size: int) -> dict[str, Any]:
    """Make the index in this process."""
    from luthier.techniques.retrieval.hybrid import Hybrid

    encoder = Standing(size, 1)
    began, worked = time.monotonic(), time.process_time()
    made = Hybrid().index(passages(size), context(folder, encoder, encoder))
    (folder / "journal.jsonl").unlink()
    return {"seconds": round(time.monotonic() - began, 1), "processor_seconds": round(time.process_time() - worked, 1),
            "vectors": made.meta["vectors"]}


def ask(folder: Path, size: int, queries: int) -> dict[str, Any]:
    """Open the index and time single queries of each kind, in turn."""
    from luthier.core.artifact import open_artifact
    from luthier.techniques.retrieval._table import open_table
    from luthier.techniques.retrieval._vectors import search
    from luthier.techniques.retrieval.hybrid import Hybrid

    index, encoder = open_artifact(folder), Standing(size, 2)
    how, table = index.meta["vectors"], open_table(folder)
    engine, minilm = load()
    floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    fused, words, draw = Hybrid(), vocabulary(), random.Random(2)
    ctx = context(folder, encoder, encoder)
    texts = [" ".join(words[int(WORDS ** draw.random()) - 1] for _ in range(QUERY_WORDS)) for _ in range(queries)]
    vectors = encoder.embed(None, texts)

    def embedded(i: int) -> None:
        engine.embed(minilm, [texts[i]])
        fused.search(index, [texts[i]], 10, ctx)

    def by_vector(i: int) -> list[str]:
        return [row["id"] for row in search(table, vectors[i], 10, how, ["id", "_distance"])]

    def exactly(i: int) -> list[str]:
        return [row["id"] for row in search(table, vectors[i], 10, {"index": "exact"}, ["id", "_distance"])]

    ways: dict[str, Callable[[int], Any]] = {
        "vector": by_vector, "fused": lambda i: fused.search(index, [texts[i]], 10, ctx), "fused_embedded": embedded}
    first = min(10, queries // 10)  # these read files, and don't count
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in (*ways, "exact")}
    for i in range(queries):
        for name, way in ways.items():
            spent, _ = clocked(way, i)
            taken[name] += [spent] if i >= first else []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000  # before everything is read for the comparison
    same = []
    for i in range(first, queries, 10):
        spent, true = clocked(exactly, i)
        taken["exact"].append(spent)
        same.append(len({*by_vector(i)} & {*true}) / 10)
    return {**{name: times(of) for name, of in taken.items()}, "recall_at_10": round(statistics.mean(same), 4),
            "compared": len(same), "floor_mb": round(floor), "searching_mb": round(peak)}


def clocked(way: Callable[[int], Any], i: int) -> tuple[tuple[float, float], Any]:
    """Seconds by the clock and of the processor, and the answer."""
    began, worked = time.perf_counter(), time.process_time()
    answer = way(i)
    return (time.perf_counter() - began, time.process_time() - worked), answer


def load() -> tuple[Any, Any]:
    """MiniLM as a run loads it."""
    from luthier.engine.steps.base import Base
    from luthier.engine.workshop import Engine

    engine = Engine()
    with tempfile.TemporaryDirectory() as folder:
        return engine, engine.load(Base(model="minilm").run({}, context(Path(folder), None, engine)))


def times(taken: list[tuple[float, float]]) -> dict[str, float]:
    """Milliseconds of single queries: median and 95th percentile of the clock, median of processor time."""
    clock, worked = sorted(t for t, _ in taken), [w for _, w in taken]
    return {"p50_ms": round(1000 * statistics.median(clock), 2), "least_ms": round(1000 * clock[0], 2),
            "p95_ms": round(1000 * clock[int(0.95 * (len(clock) - 1))], 2),
            "processor_ms": round(1000 * statistics.median(worked), 2)}


if __name__ == "__main__":
    raise SystemExit(main())
