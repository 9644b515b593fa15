"""Ingestion: seconds for HTML pages and peak memory for plain text: `python benchmarks/ingest_speed.py [--json]`.

1,000 generated pages of about 10 kB, and 100 MB of generated text in files of 1 MB, are read, cut and freed of
near-duplicates in a process of their own; its peak is what its resident memory reached. `--pico` does the same with a
hundredth of the data. `--embedding` measures MiniLM's embeddings instead, as the share of what the products of its layers
allow: both by processor time on one thread, in turn, in one process, so that a loaded machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

PAGES, PAGE_BYTES, TEXT_FILES, TEXT_BYTES = 1000, 10_000, 100, 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pico", action="store_true", help="a hundredth of the data: to see that it runs")
    parser.add_argument("--threads", type=int, default=measure.processors())
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, help="file for the result; benchmarks/results/ingest_speed.json if left out")
    parser.add_argument("--embedding", action="store_true", help="only the share of the bound that embedding reaches")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(ingest(asked.child)))
        return 0
    if asked.embedding:
        result = {"benchmark": "embed_speed", "pico": asked.pico, "machine": measure.machine(1), **embedding(asked.pico)}
        measure.write(result, asked.out or measure.RESULTS / "embed_speed.json", asked.json)
        return 0
    share = 100 if asked.pico else 1
    found = {}
    with tempfile.TemporaryDirectory(prefix="luthier-ingest-") as folder:
        for name, files, size, page in (("html", PAGES // share, PAGE_BYTES, True),
                                        ("text", TEXT_FILES // share, TEXT_BYTES, False)):
            root = Path(folder) / name
            make(root / "docs", files, size, page)
            answer = subprocess.run([sys.executable, __file__, "--child", str(root)], capture_output=True, text=True,
                                    env={**os.environ, "OMP_NUM_THREADS": str(asked.threads)})
            if answer.returncode:
                print(answer.stderr, file=sys.stderr)
                return 1
            found[name] = {"files": files, **json.loads(answer.stdout.splitlines()[-1])}
            shutil.rmtree(root)
    result = {"benchmark": "ingest_speed", "pico": asked.pico, "machine": measure.machine(asked.threads), "results": found}
    measure.write(result, asked.out or measure.RESULTS / "ingest_speed.json", asked.json)
    return 0


def make(folder: Path, files: int, size: int, page: bool) -> None:
    """Files of about `size` bytes from a vocabulary of 20,000 words, each other's near-duplicates nowhere."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20_000)]
    for number in range(files):
        parts, letters = [], 0
        while letters < size:
            heading, text = " ".join(rng.choices(words, k=3)), " ".join(rng.choices(words, k=80))
            parts.append(f"<h2>{heading}</h2>\n<p>{text[:200]} <a href='x.html'>{heading}</a> <code>{heading}</code> "
                         f"{text[200:]}.</p>\n<ul><li>{heading}</li><li>{text[:50]}</li></ul>\n" if page else f"{text}.\n\n")
            letters += len(parts[-1])
        whole = f"<html><head><title>{number}</title></head><body>{''.join(parts)}</body></html>" if page else "".join(parts)
        (folder / f"{number:05d}.{'html' if page else 'txt'}").write_text(whole)


def ingest(root: Path) -> dict[str, Any]:
    """Ingest `root/docs` in this process."""
    from luthier.core.files import Journal
    from luthier.core.rng import Rng
    from luthier.core.step import Ctx
    from luthier.pipelines.steps.ingest import Ingest

    work = root / "work"
    work.mkdir()
    began = time.monotonic()
    step = Ingest(paths=[str(root / "docs")])
    made = step.run({}, Ctx(Rng(0), work, Journal(work / "journal.jsonl"), engine=None))  # type: ignore[arg-type]
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    size = sum(p.stat().st_size for p in (root / "docs").iterdir())
    return {"megabytes": round(size / 1e6, 2), "seconds": round(seconds, 2), "peak_mb": round(peak),
            "documents": made.meta["documents"], "passages": made.meta["passages"]}


def embedding(pico: bool) -> dict[str, Any]:
    """Tokens a second of the processor, against 2 operations per weight at the rate of the layers' own products."""
    import bound
    import search_speed
    import torch
    import workloads

    engine, minilm = search_speed.load()
    torch.set_num_threads(1)
    shapes = bound.shapes_of(minilm.module)
    paragraphs = [text for _, text in workloads.paragraphs()][:16 if pico else 256]
    texts = [" ".join(paragraphs[i:i + 4]) for i in range(0, len(paragraphs), 4)]
    tokens = sum(len(minilm.tokenizer(t, truncation=True, max_length=256)["input_ids"]) for t in texts)
    products = [(torch.full((2048, i), 0.5), torch.full((i, o), 0.5), times) for i, o, times in shapes.layers]

    def rate() -> float:
        """FLOP/s of the processor over one forward's products of 2,048 tokens."""
        spent = sum(times * worked(lambda a=a, b=b: a @ b) for a, b, times in products)  # type: ignore[misc]
        return 2 * 2048 * shapes.trunk_weights / spent

    rate()
    engine.embed(minilm, texts)
    runs = []
    for _ in range(1 if pico else 7):
        rates = [rate(), rate()]
        spent = worked(lambda: engine.embed(minilm, texts))
        middle = statistics.median([*rates, rate(), rate()])
        limit = middle / (2 * shapes.trunk_weights)
        runs.append({"tokens_per_second": tokens / spent, "gemm_gflops": middle / 1e9,
                     "share_of_bound": tokens / spent / limit})
    shares = [r["share_of_bound"] for r in runs]
    return {"tokens": tokens, "dtype": str(minilm.module.dtype).removeprefix("torch."), "load": os.getloadavg()[0],
            "tokens_per_second": statistics.median(r["tokens_per_second"] for r in runs),
            "gemm_gflops": statistics.median(r["gemm_gflops"] for r in runs),
            "share_of_bound": statistics.median(shares), "share_of_bound_spread": [min(shares), max(shares)]}


def worked(call: Callable[[], Any]) -> float:
    """Seconds of the processor."""
    began = time.process_time()
    call()
    return time.process_time() - began


if __name__ == "__main__":
    raise SystemExit(main())
