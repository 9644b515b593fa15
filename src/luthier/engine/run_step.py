"""One step, alone in its folder: `python -m luthier.engine.run_step FOLDER`.

`state.json` says everything that the work depends on: the step with its settings, the seed, the folders of its inputs
and what the run decided by measuring. Whoever starts a step (this process, another one, another machine that sees the
same files) runs it from there, and finds its journal and checkpoints where they were left.

Without a folder the process is a worker: folders come as lines of standard input, what happens goes out as JSON lines
(`log`, `progress`, `done`, `failed`), and the end of the input ends the process, whatever it is doing.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifact import Artifact, content_of, open_artifact
from luthier.core.component import build
from luthier.core.errors import GateError, LuthierError, UserError
from luthier.core.files import Journal, commit_folder, read_json, write_json, write_lines
from luthier.core.recipe import Node
from luthier.core.rng import Rng
from luthier.core.run import now
from luthier.core.step import Ctx, Progress, Step, silent
from luthier.engine.memory import give_back

if TYPE_CHECKING:
    from luthier.engine.workshop import Engine

STATE, FAILURE, DONE = "state.json", "failure.json", "step.json"
# Seconds between two messages of progress: a fast step must not be held up by whoever watches it.
QUIET_SECONDS = 0.1


def finished(folder: Path, key: str) -> Artifact | None:
    """The artifact of a step folder that was finished under this key."""
    path = folder / DONE
    return open_artifact(folder) if path.exists() and read_json(path)["key"] == key else None


def prepare(node: Node, inputs: Mapping[str, Artifact], key: str, seed: int, work: Path, decisions: Mapping[str, Any]
            ) -> None:
    """Write what `run_step` reads. The remains of another key are removed; those of the same key are gone on from."""
    path = work / STATE
    kept = read_json(path) if path.exists() else {}
    if work.exists() and kept.get("key") != key:
        shutil.rmtree(work)
        kept = {}
    work.mkdir(parents=True, exist_ok=True)
    write_json(path, {
        "key": key, "started": kept.get("started", now()), "seconds": kept.get("seconds", 0.0), "name": node.name,
        "scope": node.scope, "seed": seed, "step": node.step.to_dict(), "module": type(node.step).__module__,
        "inputs": {name: str(artifact.folder.absolute()) for name, artifact in inputs.items()},
        "decisions": dict(decisions)})


def open_step(work: Path, engine: Engine, log: Callable[[str], None] = lambda text: None, progress: Progress = silent,
              journal: Callable[[Path], Journal] = Journal) -> tuple[Step, dict[str, Artifact], Ctx]:
    """The step of a prepared folder, its inputs and its context."""
    state = read_json(work / STATE)
    importlib.import_module(state["module"])
    step: Step = build("step", state["step"])
    inputs = {name: open_artifact(Path(folder)) for name, folder in state["inputs"].items()}
    return step, inputs, Ctx(
        rng=Rng(state["seed"]).within(state["scope"]), folder=work, journal=journal(work / "journal.jsonl"), engine=engine,
        log=log, progress=progress, stream=lambda name: inputs[name.partition(".")[0]].examples(name.partition(".")[2]))


def run_step(work: Path, engine: Engine, log: Callable[[str], None] = lambda text: None, progress: Progress = silent,
             journal: Callable[[Path], Journal] = Journal) -> None:
    """Work on a prepared folder until it holds `step.json`.

    Raises:
        GateError: a receipt differs. Every error, this one too, is kept in `failure.json`.
    """
    state = read_json(work / STATE)
    began = time.monotonic()

    def spent() -> float:
        return float(state["seconds"]) + time.monotonic() - began

    try:
        step, inputs, ctx = open_step(work, engine, log, progress, journal)
        artifact = step.run(inputs, ctx)
        receipts = step.receipts(inputs, artifact, ctx)
        write_lines(work / "receipts.jsonl", (r.to_dict() for r in receipts))
        for broken in (r for r in receipts if r.verdict == "differs"):
            raise GateError(f"Step '{state['name']}' left two things that must agree but differ: {broken.name}: "
                            f"{broken.left} against {broken.right}. {broken.detail}")
    except BaseException as error:
        keep_failure(work, error, spent())
        raise
    give_back()  # what this step freed is not the next one's
    write_json(work / DONE, {
        "name": state["name"], "use": step.info.name, "version": step.info.version, "kind": artifact.kind,
        "key": state["key"], "identity": artifact.identity, "inputs": {n: a.identity for n, a in inputs.items()},
        "started": state["started"], "finished": now(), "seconds": round(spent(), 3), "log": "log.txt"})


def commit(work: Path, final: Path) -> Artifact:
    """Give a finished folder its public name, without what only the work needed."""
    for name in (STATE, FAILURE):
        (work / name).unlink(missing_ok=True)
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    # What an artifact is called may come from elsewhere (a base's checksum, an index's settings); this is what lies there.
    write_json(work / DONE, {**read_json(work / DONE), "content": content_of(work)})
    commit_folder(work, final)
    return open_artifact(final)


def keep_failure(work: Path, error: BaseException, seconds: float | None = None) -> None:
    """Best effort: on a full disk the failure itself can't be written, and the error must still be shown."""
    try:
        if seconds is not None:
            write_json(work / STATE, {**read_json(work / STATE), "seconds": seconds})
        shown = str(error) if isinstance(error, LuthierError) else \
            "".join(traceback.format_exception(type(error), error, error.__traceback__))
        write_json(work / FAILURE, {"when": now(), "type": type(error).__name__, "error": shown})
    except OSError:
        return


# --- errors across processes ---------------------------------------------------------------------------------------

def described(error: BaseException) -> dict[str, Any]:
    """An error as JSON."""
    text = str(error) if isinstance(error, LuthierError) else \
        "".join(traceback.format_exception(type(error), error, error.__traceback__))
    number = error.errno if isinstance(error, OSError) else None
    return {"type": type(error).__name__, "text": text, "errno": number,
            "exit_code": error.exit_code if isinstance(error, LuthierError) else None}


def restored(name: str, said: Mapping[str, Any]) -> Exception:
    """The error that `described` described, to be raised by whoever waits for step `name`."""
    if said["exit_code"] is not None:
        kinds: dict[int, type[LuthierError]] = {UserError.exit_code: UserError, GateError.exit_code: GateError}
        return kinds.get(said["exit_code"], LuthierError)(said["text"])
    if said["errno"] is not None:
        return OSError(said["errno"], os.strerror(said["errno"]))
    return RuntimeError(f"step '{name}' failed in its process:\n{said['text']}")


# --- the process ---------------------------------------------------------------------------------------------------

def main(arguments: list[str]) -> int:
    """Run one folder and say what happens on standard error, or serve as a worker."""
    if not arguments:
        _serve()
        return 0
    from luthier.engine.workshop import Engine

    work = Path(arguments[0])
    if not (work / STATE).exists():
        print(f"{work} is no prepared step: it has no {STATE}.", file=sys.stderr)
        return UserError.exit_code
    try:
        run_step(work, engine_for(work, Engine), lambda text: print(text, file=sys.stderr))
    except LuthierError as error:
        print(f"luthier: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def engine_for(work: Path, make: Callable[..., Engine]) -> Engine:
    """An engine with the decisions of the run that a folder belongs to."""
    decisions = read_json(work / STATE)["decisions"]
    engine = make(threads=decisions["threads"], exact=decisions["exact"])
    engine.decide(decisions)
    return engine


def _serve() -> None:
    # The channel is a copy of standard output: what a step prints must not be taken for a message.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    folders: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            folders.put(line.rstrip("\n"))
        os._exit(0)  # nobody waits for the result any more; what is finished is kept

    threading.Thread(target=listen, daemon=True).start()
    from luthier.engine.workshop import Engine

    engine: Engine | None = None
    while True:
        work = Path(json.loads(folders.get()))
        engine = engine or engine_for(work, Engine)
        try:
            run_step(work, engine, lambda text: _send(channel, log=text), _Throttled(channel))
        except BaseException as error:
            _send(channel, failed=described(error))
            if not isinstance(error, Exception):
                raise
        else:
            _send(channel, done=True)


def _send(channel: Any, **message: Any) -> None:
    channel.write(json.dumps(message) + "\n")


class _Throttled:
    """Progress as messages, at most one in `QUIET_SECONDS` and the last one always."""

    def __init__(self, channel: Any) -> None:
        self.channel, self.last = channel, 0.0

    def __call__(self, done: int, total: int, unit: str = "", **shown: float) -> None:
        if done < total and time.monotonic() - self.last < QUIET_SECONDS:
            return
        self.last = time.monotonic()
        _send(self.channel, progress=[done, total, unit, shown])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
