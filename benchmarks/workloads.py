"""The workloads that training is measured on, and making one: the rows, their order, the weights training starts from.

`make(workload, folder)` leaves in a folder all that any contender needs:

    rows.jsonl      the rows as text (prompt/completion or text/label), as `luthier tune` reads them
    warm-up.jsonl   other rows of the same kind
    workload.json   rows as token ids with what is learned, in the order in which our loop takes them, batch by batch;
                    base, shapes, settings
    initial.safetensors   the trained weights before the first step

Order and initial weights are taken from a run of our own loop, by the hook that every method may have; the peers are
given both, so that their losses can be compared step by step.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Workload:
    """What is trained, on how much, how. `method`: lora, full, top-layers or one of `bound.VECTORS`."""

    name: str
    base: str
    method: str = "lora"
    task: str = "generate"
    rows: int = 64
    batch_rows: int = 8
    max_tokens: int = 512
    epochs: int = 1
    learning_rate: float = 2e-4
    dtype: str = "bfloat16"
    rank: int = 8
    alpha: int = 16
    top_share: float = 0.25
    source: str = "reference"
    contenders: tuple[str, ...] = ("luthier",)

    @property
    def steps(self) -> int:
        return -(-self.rows // self.batch_rows) * self.epochs


_FULL = ("luthier", "luthier-full")
WORKLOADS = {w.name: w for w in (
    Workload("gemma-lora", "gemma3-270m",
             contenders=("luthier", "trl", "trainer", "llamafactory", "llamafactory-packing")),
    Workload("gemma-full", "gemma3-270m", "full", learning_rate=2e-5, contenders=("luthier", "trainer")),
    Workload("minilm-classify", "minilm", "full", "classify", 2000, 16, 128, learning_rate=2e-5, dtype="float32",
             source="reviews", contenders=("luthier", "trainer")),
    Workload("gemma-top-layers", "gemma3-270m", "top-layers", epochs=3, learning_rate=2e-5, contenders=_FULL),
    Workload("minilm-top-layers", "minilm", "top-layers", "classify", 480, 16, 128, 3, 2e-5, "float32",
             source="reviews", contenders=_FULL),
    Workload("gemma-layernorm", "gemma3-270m", "layernorm", epochs=2, contenders=_FULL),
    *(Workload(f"minilm-{method}", "minilm", method, "classify", 480, 16, 128, 2, 1e-3, "float32", source="reviews",
               contenders=_FULL) for method in ("bitfit", "layernorm")),
)}


def pico(workload: Workload) -> Workload:
    """The same with a model of random weights, to see in seconds that everything runs."""
    base = "pico-encoder" if workload.task == "classify" else "pico"
    return replace(workload, base=base, rows=min(workload.rows, 16), batch_rows=min(workload.batch_rows, 8), dtype="float32")


def synthetic(rows: int) -> Workload:
    """`rows` short rows for a pico model: how memory and time grow with the data."""
    return Workload(f"rows-{rows}", "pico", rows=rows, source="synthetic", dtype="float32", batch_rows=16)


def place(workload: Workload, folder: Path) -> None:
    """Write the rows and the settings: enough for our own loop."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(workload, folder)
    (folder / "asked.json").write_text(json.dumps(asdict(workload)), encoding="utf-8")


def make(workload: Workload, folder: Path, run: Any) -> dict[str, Any]:
    """Place it and let `run(folder)`, our own loop in a process of its own, add order and initial weights."""
    place(workload, folder)
    run(folder)
    made: dict[str, Any] = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
    return made


def write_rows(workload: Workload, folder: Path) -> None:
    """rows.jsonl and warm-up.jsonl."""
    both = {"reference": _reference, "reviews": _reviews, "synthetic": _synthetic}[workload.source](2 * workload.rows, folder)
    for name, rows in (("rows", both[:workload.rows]), ("warm-up", both[workload.rows:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def paragraphs() -> list[tuple[str, str]]:
    """(topic, paragraph of 80 to 500 characters) of the Python reference that Python brings along, in a fixed order."""
    from pydoc_data.topics import topics

    found = [(name, " ".join(p.split())) for name in sorted(topics) for p in topics[name].split("\n\n")]
    found = [(name, p) for name, p in found if 80 < len(p) < 500]
    random.Random(0).shuffle(found)
    return found


def _reference(count: int, folder: Path) -> list[dict[str, str]]:
    return [{"prompt": f"Question: What does the Python reference say about {name}?\nAnswer:", "completion": f" {text}"}
            for name, text in paragraphs()[:count]]


def _reviews(count: int, folder: Path) -> list[dict[str, str]]:
    script, out = ROOT / "examples" / "movie-reviews" / "make_rows.py", folder / "reviews.jsonl"
    subprocess.run([sys.executable, str(script), str(out), "--rows", str(count)], check=True, capture_output=True)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def _synthetic(count: int, folder: Path) -> list[dict[str, str]]:
    words = "object class module name value type call scope block method list tuple import string number iterator".split()
    draw = random.Random(0)
    return [{"prompt": f"Question: row {i}\nAnswer:", "completion": " " + " ".join(draw.choices(words, k=draw.randint(6, 12)))}
            for i in range(count)]
