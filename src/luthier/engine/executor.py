"""The step executor: runs a recipe's steps, each as soon as its inputs are there.

A step works in a private folder `steps/.NAME.work` and is renamed to `steps/NAME` when it has finished. Its key is
its identity, its seed and the identities of its inputs; a finished step with the same key is not run again, an
unfinished one finds its journal and its checkpoints where it left them, and one that failed keeps `failure.json`.

Everything here is the same wherever steps run. A `Backend` says only how a prepared folder is worked on: `Here` in
this process, `processes.Processes` in several, `distributed.Together` in ranks that were started together,
`ray_executor.RayTasks` on a cluster.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError, nearest
from luthier.core.identity import digest
from luthier.core.recipe import Node, Recipe
from luthier.core.run import Run, now
from luthier.core.step import Progress, silent
from luthier.engine.run_step import commit, finished, prepare, run_step

if TYPE_CHECKING:
    from luthier.engine.workshop import Engine

EXECUTORS = ("local", "processes", "ray")


@dataclass
class Watcher:
    """Who is told what happens; every method may be replaced. `progress(name)` watches one step.

    A step that was done before is not started, only finished (`cached`); `ended` comes after the last step.
    """

    started: Callable[[str, int, int], None] = lambda name, n, of: None
    finished: Callable[[str, float, bool], None] = lambda name, seconds, cached: None
    log: Callable[[str], None] = lambda text: None
    progress: Callable[[str], Progress] = lambda name: silent
    ended: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Job:
    """A prepared step folder, and where its words and its progress go."""

    name: str
    work: Path
    log: Callable[[str], None]
    progress: Progress
    # Whether every rank of a distributed training works on it.
    together: bool = False


class Backend(Protocol):
    """How a prepared step folder is worked on.

    `start` is called with at most `at_once` steps unfinished; `wait` returns the name of one that has ended, and its
    error if it failed. `close` is called once; what is still working then is stopped.
    """

    at_once: int

    def start(self, job: Job) -> None: ...

    def wait(self) -> tuple[str, Exception | None]: ...

    def close(self) -> None: ...


class Here:
    """One step after the other, in this process; an error leaves at once."""

    at_once = 1

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.jobs: list[Job] = []

    def start(self, job: Job) -> None:
        self.jobs.append(job)

    def wait(self) -> tuple[str, Exception | None]:
        job = self.jobs.pop()
        run_step(job.work, self.engine, job.log, job.progress)
        return job.name, None

    def close(self) -> None:
        self.jobs.clear()


def check_executor(text: str) -> None:
    """Refuse what `--executor` can't be.

    Raises:
        UserError: names what there is.
    """
    name, _, rest = text.partition(":")
    if name == "ray":
        from luthier.engine import ray_executor

        ray_executor.check(rest)
    elif name not in EXECUTORS or (name == "local" and rest) or (rest and not (rest.isdigit() and int(rest))):
        raise UserError(f"--executor {text}: write local, processes, processes:N or ray:ADDRESS. {nearest(name, EXECUTORS)}")


def execute(recipe: Recipe, folder: Path, engine: Engine, watcher: Watcher | None = None, fresh: bool = False,
            executor: str = "local") -> Run:
    """Run what has not run yet and return the run.

    Raises:
        UserError: bad input, found before anything expensive.
        GateError: a receipt differs; the step is kept as a failure.
    """
    from luthier.engine import distributed

    watcher = watcher or Watcher()
    check_executor(executor)
    if distributed.launched() > 1:
        if executor != "local":
            raise UserError(f"--executor {executor} does not go with a launcher, which has started "
                            f"{distributed.launched()} processes already. Leave out one of the two.")
        if distributed.connect():
            distributed.follow(engine)
    for node in recipe.nodes:
        node.step.check()
    if fresh and (folder / "run.json").exists():
        with Run(folder).locked():  # refuses while another process works there
            shutil.rmtree(folder)
    run = Run.start(folder, recipe)
    try:
        with run.locked() as lock:
            kept = run.record.get("decisions", {})
            if kept and kept["exact"] != engine.exact:
                raise UserError(f"{folder} was begun {'with' if kept['exact'] else 'without'} --exact. Run its command "
                                "again as it was, give another folder with --out, or start over with --fresh.")
            backend, chosen = _backend(executor, recipe, engine, kept, lock)
            run.update(decisions=engine.decide(kept or chosen), executor={"name": executor, "at_once": backend.at_once})
            try:
                made = execute_nodes(recipe, folder / "steps", engine, watcher, run.log, backend=backend)
            finally:
                backend.close()
            watcher.ended()
            run.update(state="finished", finished=run.record.get("finished") or now(), decisions=engine.decisions,
                       bit_reproducible=all(map(_bit_reproducible, made.values())))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise UserError(f"Can't write to {folder}: {os.strerror(error.errno)}. What is finished is kept; make room and run "
                            "the same command again.") from error
        raise
    return run


def _bit_reproducible(artifact: Artifact) -> bool:
    """Whether the same command gives the same bits here; not where memory ran out while it was trained."""
    return bool(artifact.meta.get("fit", {}).get("decisions", {}).get("bit_reproducible", True))


def _backend(executor: str, recipe: Recipe, engine: Engine, kept: Mapping[str, Any], lock: int
             ) -> tuple[Backend, dict[str, Any]]:
    """The back end, and what it decides for a run that has decided nothing yet."""
    if executor == "local":
        from luthier.engine import distributed

        return distributed.Together(engine) if distributed.launched() > 1 else Here(engine), {}
    kind, _, rest = executor.partition(":")
    if kind == "ray":
        from luthier.engine.ray_executor import RayTasks

        tasks = RayTasks(rest, recipe, kept.get("threads"))
        return tasks, {"threads": tasks.threads, "exact": engine.exact}
    from luthier.engine.processes import Processes, share_of_machine

    at_once, threads = share_of_machine(recipe, kept.get("threads"), int(rest or 0))
    return Processes(at_once, threads, keep_open=(lock,)), {"threads": threads, "exact": engine.exact}


def execute_nodes(recipe: Recipe, root: Path, engine: Engine, watcher: Watcher, log: Callable[[str], None],
                  given: Mapping[str, Artifact] | None = None, backend: Backend | None = None) -> dict[str, Artifact]:
    """Run a recipe's steps under `root`; `given` are artifacts from outside, by step name.

    When a step fails, those that are running are waited for and nothing new is started; the first failure is raised.
    """
    done: dict[str, Artifact] = dict(given or {})
    nodes = [n for n in recipe.nodes if n.name not in done]
    graph = _Graph(recipe.seed, root, engine, watcher, log, backend or Here(engine), done, nodes, len(nodes))
    while graph.waiting or graph.running:
        if not graph.start_next() and not graph.collect():
            break
    if graph.failures:
        raise graph.failures[0]
    return done


@dataclass
class _Graph:
    """Which steps wait, run and are done."""

    seed: int
    root: Path
    engine: Engine
    watcher: Watcher
    log: Callable[[str], None]
    backend: Backend
    done: dict[str, Artifact]
    waiting: list[Node]
    total: int
    running: dict[str, tuple[Path, float]] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)

    def start_next(self) -> bool:
        """Start the first step whose inputs are there; False when there is none, or no room."""
        if self.failures or len(self.running) >= self.backend.at_once:
            return False
        node = next((n for n in self.waiting if all(s in self.done for s in n.inputs.values())), None)
        if node is None:
            return False
        self.waiting.remove(node)
        inputs = {wanted: self.done[source] for wanted, source in node.inputs.items()}
        seed = self.seed if node.seed is None else node.seed
        key = digest({"step": node.step.identity, "content": node.step.content(),
                      "seed": seed if type(node.step).seeded else None,
                      "inputs": {n: a.identity for n, a in inputs.items()}})
        work, final = self.root / f".{node.name}.work", self.root / node.name
        kept = finished(final, key)
        if kept is None and finished(work, key) is not None:
            # A kill came between the last line of the work and its new name.
            kept = commit(work, final)
        if kept is not None:
            self.done[node.name] = kept
            self.watcher.finished(node.name, 0.0, True)
            return True
        self.watcher.started(node.name, self.total - len(self.waiting), self.total)
        prepare(node, inputs, key, seed, work, self.engine.decisions)
        self.running[node.name] = (work, time.monotonic())
        self.backend.start(Job(node.name, work, self._say(node.name), self.watcher.progress(node.name),
                               type(node.step).distributed))
        return True

    def collect(self) -> bool:
        """Wait for one running step and take what it left; False when none runs."""
        if not self.running:
            return False
        name, error = self.backend.wait()
        work, began = self.running.pop(name)
        if error is not None:
            self.failures.append(error)
            self.log(f"[{name}] failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            return True
        self.done[name] = commit(work, self.root / name)
        self.log(f"[{name}] finished in {time.monotonic() - began:.1f} s")
        self.watcher.finished(name, time.monotonic() - began, False)
        return True

    def _say(self, name: str) -> Callable[[str], None]:
        def say(text: str) -> None:
            self.log(f"[{name}] {text}")
            self.watcher.log(f"{name}: {text}")

        return say
