"""Steps in processes of this machine: those that don't need each other run at the same time.

A worker is `python -m luthier.engine.run_step`; it imports the libraries once, keeps the models it loaded, and works on
one folder after another. Its standard input is what ties it to us: when we end, however we end, it ends.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.recipe import Recipe
from luthier.engine.executor import Job
from luthier.engine.memory import available_mb
from luthier.engine.run_step import keep_failure, restored

# Resident memory of a worker that has imported everything and loaded nothing.
FLOOR_MB = 700
# A model in float32, and as much again for what is computed with it.
MODEL_FACTOR = 2.0
STOP_SECONDS = 5.0


def share_of_machine(recipe: Recipe, threads: int | None = None, most: int = 0) -> tuple[int, int]:
    """How many steps at once, and how many threads each.

    threads: what the run decided at its first start, which holds for every later one (sums of floats depend on it).
    most: at most so many at once; 0 leaves it to processors and memory.
    """
    from luthier.engine.models import check_base
    from luthier.engine.steps.base import Base

    processors = len(os.sched_getaffinity(0))
    largest = max((check_base(n.step.model) for n in recipe.nodes if isinstance(n.step, Base)), default=0.0)
    fits = int(available_mb() // (FLOOR_MB + MODEL_FACTOR * largest))
    at_once = max(1, min(most or processors, fits, len(recipe.nodes)))
    if threads:
        at_once = at_once if most else max(1, min(at_once, processors // threads))
    return at_once, threads or max(1, processors // at_once)


class _Worker:
    """One process and the thread that reads what it says."""

    def __init__(self, threads: int, keep_open: Sequence[int], events: queue.Queue[tuple[_Worker, dict[str, Any]]]) -> None:
        self.job: Job | None = None
        # What we import, it must find, too. A session of its own: Ctrl-C reaches us, and we stop it in order.
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "luthier.engine.run_step"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            encoding="utf-8", env=variables, pass_fds=tuple(keep_open), start_new_session=True)
        self.reader = threading.Thread(target=self._read, args=(events,), daemon=True)
        self.reader.start()

    def _read(self, events: queue.Queue[tuple[_Worker, dict[str, Any]]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            events.put((self, json.loads(line)))
        events.put((self, {"ended": self.process.wait()}))

    def give(self, job: Job) -> None:
        assert self.process.stdin is not None
        self.job = job
        try:
            self.process.stdin.write(json.dumps(str(job.work.absolute())) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return  # it has just ended; its reader says so

    def stop(self) -> None:
        """A busy one is interrupted, so that its step keeps its failure; an idle one ends by itself."""
        assert self.process.stdin is not None
        if self.job is not None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.wait()
        self.reader.join()


class Processes:
    """At most `at_once` workers; a step gets an idle one, or a new one."""

    def __init__(self, at_once: int, threads: int, keep_open: Sequence[int] = ()) -> None:
        self.at_once, self.threads = at_once, threads
        # The lock of the run stays held until the last worker has let go of it.
        self.keep_open = keep_open
        self.workers: list[_Worker] = []
        self.events: queue.Queue[tuple[_Worker, dict[str, Any]]] = queue.Queue()

    def start(self, job: Job) -> None:
        """Give the job to a worker."""
        worker = next((w for w in self.workers if w.job is None), None)
        if worker is None:
            worker = _Worker(self.threads, self.keep_open, self.events)
            self.workers.append(worker)
        worker.give(job)

    def wait(self) -> tuple[str, Exception | None]:
        """Pass on what workers say until one of their steps has ended."""
        while True:
            worker, message = self.events.get()
            job = worker.job
            if "ended" in message:
                self.workers.remove(worker)
                if job is not None:
                    error = LuthierError(f"The process of step '{job.name}' {_end(message['ended'])}. What it finished is "
                                         "kept: run the same command to go on.")
                    keep_failure(job.work, error)
                    return job.name, error
            elif job is None:
                continue
            elif "log" in message:
                job.log(message["log"])
            elif "progress" in message:
                done, total, unit, shown = message["progress"]
                job.progress(done, total, unit, **shown)
            else:
                worker.job = None
                return job.name, restored(job.name, message["failed"]) if "failed" in message else None

    def close(self) -> None:
        """Stop every worker."""
        for worker in self.workers:
            worker.stop()
        self.workers.clear()


def _end(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    killed = " (often the system's answer to memory that has run out)" if code == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{killed}"
