"""Steps as Ray tasks: `--executor ray:ADDRESS`, on machines that see the run's folder under one path.

A task is what a process is elsewhere: it runs one prepared folder (`run_step`) and leaves everything there, so the cluster
carries no data, and what has finished needs no cluster to be read. A worker keeps its engine from task to task. `ray:local`
starts a cluster of this machine's processors and ends it with the run; any other address is Ray's own (`auto`,
`HOST:PORT`, `ray://HOST:PORT`). Tasks are not retried by Ray: a failure is kept, and the same command goes on.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError, UserError
from luthier.core.recipe import Recipe
from luthier.engine.executor import Job
from luthier.engine.processes import share_of_machine
from luthier.engine.run_step import described, engine_for, keep_failure, restored, run_step

if TYPE_CHECKING:
    from luthier.engine.workshop import Engine

LOCAL = "local"
REACHED_SECONDS = 5.0
# Nothing large travels: Ray's smallest store.
STORE_BYTES = 80 * 1024 * 1024
# A busy machine may need a second try to start a cluster.
STARTS = 3
# What a worker must find as we do.
VARIABLES = ("LUTHIER_CACHE", "LUTHIER_ACCEPT_TERMS", "LUTHIER_MEMORY_LIMIT_MB", "HF_HOME", "HF_HUB_OFFLINE")


def check(address: str) -> None:
    """Refuse what can't be connected to, before anything runs.

    Raises:
        UserError: no address, nobody answers at it, or Ray is not installed.
    """
    if not address:
        raise UserError("--executor ray needs an address: ray:local for a cluster of this machine's processors, else "
                        "ray:auto, ray:HOST:PORT or ray:ray://HOST:PORT.")
    if importlib.util.find_spec("ray") is None:
        raise UserError("--executor ray: Ray is not installed. Install it: pip install 'luthier[ray]'")
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:  # Ray itself waits for minutes
        socket.create_connection((host, int(port)), REACHED_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UserError(f"--executor ray:{address} can't be reached: {error}. Start a cluster with 'ray start --head', or "
                        "write ray:local.") from error


class RayTasks:
    """As many tasks at once as the cluster has room for, each with `threads` processors."""

    def __init__(self, address: str, recipe: Recipe, threads: int | None = None) -> None:
        """threads: what the run decided at its first start, if it has one.

        Raises:
            UserError: there is no such cluster.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent out unasked
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a step sees the devices that this process sees
        import ray

        self.ray = ray
        processors = len(os.sched_getaffinity(0))
        paths = [p for p in sys.path if p and Path(p).is_dir()]
        variables = {"PYTHONPATH": os.pathsep.join(paths), **{n: os.environ[n] for n in VARIABLES if n in os.environ}}
        options: dict[str, Any] = {"runtime_env": {"env_vars": variables}, "log_to_driver": False, "logging_level": "ERROR"}
        if address == LOCAL:
            options |= {"num_cpus": processors, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        self._connect(address, options)
        if address == LOCAL:
            self.at_once, self.threads = share_of_machine(recipe, threads)
        else:
            sizes = [int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"]]
            most = max(1, sum(sizes))
            self.threads = threads or max(1, min(max(sizes, default=1), most // min(len(recipe.nodes), most)))
            self.at_once = max(1, most // self.threads)
        self.task = ray.remote(num_cpus=self.threads, max_retries=0)(_work)
        self.jobs: dict[Any, Job] = {}

    def _connect(self, address: str, options: dict[str, Any]) -> None:
        for attempt in range(STARTS):
            try:
                self.ray.init(address=address, **options)
                return
            except Exception as error:  # a plain one where a start takes Ray more than its 30 s
                self.ray.shutdown()
                if address == LOCAL and attempt + 1 < STARTS:
                    continue
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UserError(f"--executor ray:{address}: can't connect: {why} Start a cluster with 'ray start --head', or "
                                "write ray:local.") from error

    def start(self, job: Job) -> None:
        """Send a folder to a worker."""
        self.jobs[self.task.remote(str(job.work.absolute()))] = job

    def wait(self) -> tuple[str, Exception | None]:
        """Wait for one task; what it said while it worked is told then."""
        (done, *_), _ = self.ray.wait(list(self.jobs), num_returns=1)
        job = self.jobs.pop(done)
        try:
            said, failed = self.ray.get(done)
        except self.ray.exceptions.RayError as error:
            lost = LuthierError(f"The Ray task of step '{job.name}' was lost: {str(error).splitlines()[0]}. What it finished "
                                "is kept: run the same command to go on.")
            keep_failure(job.work, lost)
            return job.name, lost
        for text in said:
            job.log(text)
        return job.name, restored(job.name, failed) if failed else None

    def close(self) -> None:
        """Stop what still works, and leave the cluster."""
        for task in self.jobs:
            self.ray.cancel(task, force=True)
        self.jobs.clear()
        self.ray.shutdown()


_engine: Engine | None = None


def _work(folder: str) -> tuple[list[str], dict[str, Any] | None]:
    """In a worker: run one folder; what it said, and its error if it failed."""
    global _engine
    from luthier.engine.workshop import Engine

    work, said = Path(folder), list[str]()
    try:
        # One engine a worker; the decisions are those of the run that the folder belongs to.
        _engine = _engine or engine_for(work, Engine)
        run_step(work, _engine, said.append)
    except Exception as error:
        return said, described(error)
    return said, None
