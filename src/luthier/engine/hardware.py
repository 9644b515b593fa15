"""What this machine does per second, measured, and what named GPUs are said to do.

The rates of this machine are measured in under three seconds and kept in the cache with date, processor, threads and
version of torch; a change in any of them measures again. The rows of GPUs are the makers' data sheets.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import UserError, nearest
from luthier.core.files import read_json, write_json
from luthier.engine.packages import cache_folder

# Tokens, inputs and outputs of the matrix product that is timed: a layer of a small model at a full micro-batch.
SHAPE = (1024, 768, 2048)
COPIED_BYTES = 1 << 26
# Compiled kernels of matrix products that are kept: those of a few micro-batches.
KERNELS = 128
SMALL_CALLS = 1000


@dataclass(frozen=True)
class Rates:
    """float32, bfloat16: FLOP per second of matrix products. bandwidth: bytes read or written per second. call_seconds:
    one operation on a tensor of no size, its backward counted apart. disk: bytes written per second.
    """

    float32: float
    bfloat16: float
    bandwidth: float
    call_seconds: float
    disk: float
    date: str = ""
    processor: str = ""
    threads: int = 1

    def flops(self, dtype: str) -> float:
        """FLOP per second of matrix products in a format."""
        return self.bfloat16 if dtype in ("bfloat16", "float16") else self.float32


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet: memory in GB, bandwidth in GB/s, dense bfloat16 (or float16) TFLOP/s."""

    name: str
    memory_gb: float
    bandwidth_gb: float
    bf16_tflops: float
    fp32_tflops: float


# Sources: NVIDIA data sheets of H100 SXM (2023), H200 (2024), A100 SXM (2021), L4 (2023), L40S (2023), A10 (2021), T4
# (2019; float16: it has no bfloat16 units), the Ada (RTX 4090: 82.6 TFLOP/s float32, 165 dense with float32 sums) and
# Ampere (RTX 3090: 35.6 and 71) white papers. Dense rates, without sparsity.
GPUS: dict[str, Gpu] = {g.name: g for g in (
    Gpu("h200", 141, 4800, 989, 67), Gpu("h100", 80, 3350, 989, 67), Gpu("a100-80", 80, 2039, 312, 19.5),
    Gpu("a100-40", 40, 1555, 312, 19.5), Gpu("l40s", 48, 864, 362, 91.6), Gpu("a10", 24, 600, 125, 31.2),
    Gpu("l4", 24, 300, 121, 30.3), Gpu("t4", 16, 320, 65, 8.1), Gpu("rtx4090", 24, 1008, 165, 82.6),
    Gpu("rtx3090", 24, 936, 71, 35.6))}
# Share of a data sheet's rates that training of small batches is assumed to reach. An assumption, not a measurement.
REACHED = 0.35
GPU_CALL_SECONDS = 8e-6
GPU_CONTEXT_MB = 600.0


def gpu_rates(gpu: Gpu) -> Rates:
    """What a GPU is assumed to reach: a prediction."""
    return Rates(gpu.fp32_tflops * 1e12 * REACHED, gpu.bf16_tflops * 1e12 * REACHED, gpu.bandwidth_gb * 1e9 * 0.7,
                 GPU_CALL_SECONDS, 1e9, "", gpu.name, 1)


def named_gpus(names: str) -> list[Gpu]:
    """GPUs by their names, separated by commas. Raises UserError for an unknown one."""
    found = []
    for name in filter(None, (n.strip().lower() for n in names.split(","))):
        if name not in GPUS:
            raise UserError(f"--on {name}: no GPU of that name is known here. {nearest(name, GPUS)} Known: {', '.join(GPUS)}.")
        found.append(GPUS[name])
    return found


def rates(threads: int) -> Rates:
    """The rates of this machine with so many threads, measured once and kept."""
    import torch

    about = {"processor": processor(), "threads": threads, "torch": torch.__version__}
    path = cache_folder() / "hardware.json"
    known: dict[str, Any] = _known(path)
    key = " / ".join(f"{k} {v}" for k, v in about.items())
    if key not in known:
        known[key] = asdict(measure(threads))
        own = path.with_name(f"hardware-{os.getpid()}.json")  # steps in other processes may write it at the same time
        write_json(own, known)
        os.replace(own, path)
    return Rates(**known[key])


def _known(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = read_json(path) if path.exists() else {}
    except UserError:  # half a file says nothing: it is measured and written again
        found = {}
    return found


def measure(threads: int) -> Rates:
    """Time a matrix product in both formats, a copy, a small call and a file; the best of several of each."""
    import torch

    from luthier.core.run import now

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows, inputs, outputs = SHAPE
        found = {}
        for dtype in (torch.float32, torch.bfloat16):
            a, b = torch.randn(rows, inputs).to(dtype), torch.randn(inputs, outputs).to(dtype)
            found[dtype] = 2 * rows * inputs * outputs / _best(lambda a=a, b=b: a @ b)  # type: ignore[misc]
        source = torch.zeros(COPIED_BYTES // 4)
        target = torch.empty_like(source)
        bandwidth = 2 * COPIED_BYTES / _best(lambda: target.copy_(source))
        small = torch.zeros(8, requires_grad=True)

        def calls() -> None:
            value = small
            for _ in range(SMALL_CALLS):
                value = value + small
            value.sum().backward()

        call = _best(calls) / (2 * SMALL_CALLS)
    finally:
        torch.set_num_threads(before)
    return Rates(found[torch.float32], found[torch.bfloat16], bandwidth, call, _disk(), now(), processor(), threads)


def _best(act: Callable[[], object], seconds: float = 0.25, most: int = 50) -> float:
    """Seconds of one call: the least of as many as fit into a quarter of a second, after one that warms up."""
    act()
    best, spent = float("inf"), 0.0
    for _ in range(most):
        began = time.perf_counter()
        act()
        took = time.perf_counter() - began
        best, spent = min(best, took), spent + took
        if spent > seconds:
            break
    return best


def _disk(megabytes: int = 32) -> float:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".written-{os.getpid()}"
    block = os.urandom(1 << 20)
    try:
        began = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(megabytes):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return megabytes * (1 << 20) / (time.perf_counter() - began)
    finally:
        path.unlink(missing_ok=True)


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()
