"""What every benchmark here shares: running a contender in its own process, peaks, medians, facts of the machine.

A contender is a script in `peers/`, run by the Python of its own environment. It prints `MARK` when the measured work
is done and one JSON object as its last line. The parent adds up the resident memory of the whole process tree while
it runs (pages that processes share count once in each) until the mark; between `PAUSE` and `RESUME`, where a contender
measures the machine itself, it looks away.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
SCRIPTS = HERE / "peers"
MARK, PAUSE, RESUME = "@measured", "@pause", "@resume"
SAMPLE_SECONDS = 0.02


class ContenderError(Exception):
    """A contender failed; the message ends with what it last said."""


def python_of(environment: str) -> Path:
    """The interpreter of a peer's environment; our own for `luthier`.

    Raises:
        ContenderError: it was not made yet.
    """
    if environment == "luthier":
        return Path(sys.executable)
    folder = Path(os.environ.get("LUTHIER_PEERS") or HERE / ".peers") / environment
    if not (folder / ".luthier-peer").exists():
        raise ContenderError(f"The environment of {environment} is not made: python scripts/make_peers.py {environment}")
    return folder / "bin" / "python"


def contend(environment: str, script: str, arguments: Sequence[Any], threads: int, timeout: float = 7200) -> dict[str, Any]:
    """Run `peers/SCRIPT ARGUMENTS` once. Returns what it printed, with `peak_mb` of its process tree.

    Raises:
        ContenderError: it failed, ran out of time or printed no result.
    """
    paths = [str(ROOT / "src"), str(HERE)] if environment == "luthier" else [str(HERE)]
    own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1",
           "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [str(python_of(environment)), str(SCRIPTS / script), *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **own})
        clock = threading.Timer(timeout, process.kill)
        clock.start()
        sampler = _Sampler(process.pid)
        lines = []
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.strip() == MARK:
                    sampler.stop()
                elif line.strip() in (PAUSE, RESUME):
                    sampler.looking = line.strip() == RESUME
                elif line.strip():
                    lines.append(line.strip())
            process.wait()
        finally:
            process.kill()  # nothing goes on alone when the benchmark is interrupted
            clock.cancel()
            sampler.stop()
        errors.seek(0)
        said = [*lines, *errors.read().splitlines()]
    if process.returncode or not lines or not lines[-1].startswith("{"):
        tail = "\n".join(f"  {line}" for line in said[-25:])
        raise ContenderError(f"{script} ended with {process.returncode} in the environment of {environment}:\n{tail}")
    return {**json.loads(lines[-1]), "peak_mb": round(sampler.peak / 1e6, 1)}


class _Sampler:
    """Watches the resident memory of a process and all its children in a thread of its own."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self.looking = True
        self._root = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        children: list[psutil.Process] = []
        turn = 0
        while not self._done.wait(SAMPLE_SECONDS):
            try:
                if turn % 10 == 0:  # listing children reads all of /proc, so it is done less often
                    children = self._root.children(recursive=True)
                total = self._root.memory_info().rss
            except psutil.Error:
                return
            for child in children:
                try:
                    total += child.memory_info().rss
                except psutil.Error:
                    continue
            turn += 1
            if self.looking:
                self.peak = max(self.peak, total)


def interleave(contenders: Mapping[str, Any], rounds: int, run: Any, say: Any) -> dict[str, list[dict[str, Any]]]:
    """`run(name, contender)` for A B C A B C …; a contender that fails keeps its error and is left out from then on."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    failed: set[str] = set()
    for number in range(rounds):
        for name, contender in contenders.items():
            if name in failed:
                continue
            try:
                result = run(name, contender)
            except ContenderError as error:
                failed.add(name)
                result = {"error": str(error)}
            found[name].append(result)
            say(f"round {number + 1}/{rounds} {name}: {_short(result)}")
    return found


def summary(runs: Sequence[Mapping[str, Any]], numbers: Sequence[str] = ("tokens_per_second",)) -> dict[str, Any]:
    """Median of each number over the runs with its spread (least, most), the highest peak, and the runs themselves."""
    good = [r for r in runs if "error" not in r]
    if not good:
        return {"error": runs[0]["error"]}
    found: dict[str, Any] = {}
    for name in numbers:
        values = [r[name] for r in good if r.get(name) is not None]
        if values:
            found[name] = statistics.median(values)
            found[f"{name}_spread"] = [min(values), max(values)]
    found["peak_mb"] = max(r["peak_mb"] for r in good)
    found |= {k: v for k, v in good[-1].items() if k not in found}
    return {**found, "runs": [{k: v for k, v in r.items() if k in (*numbers, "seconds", "peak_mb", "error")} for r in runs]}


def machine(threads: int) -> dict[str, Any]:
    """Date, processor, memory and the versions of what runs in our own environment."""
    names = ("luthier", "torch", "transformers", "peft", "numpy")
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "processor": _processor(), "threads": threads,
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1), "system": platform.system(),
            "python": platform.python_version(), "versions": versions(names)}


def versions(names: Sequence[str]) -> dict[str, str]:
    """Versions of the installed distributions among `names`."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def write(result: Mapping[str, Any], out: Path | None, as_json: bool) -> None:
    """Write the result to a file, and print it as one line when asked."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(result))


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def _short(result: Mapping[str, Any]) -> str:
    if "error" in result:
        return str(result["error"])
    shown = {k: round(v, 4) for k, v in result.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return ", ".join(f"{k} {v}" for k, v in shown.items())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
