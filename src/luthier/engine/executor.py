"""The step executor: runs a recipe's steps in order, in one process.

A step works in a private folder `steps/.NAME.work` and is renamed to `steps/NAME` when it has finished. Its key is
its identity, the seed and the identities of its inputs; a finished step with the same key is not run again, an
unfinished one finds its journal and its checkpoints where it left them, and one that failed keeps `failure.json`.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifact import Artifact, open_artifact
from luthier.core.errors import GateError, LuthierError, UserError
from luthier.core.files import Journal, commit_folder, read_json, write_json, write_lines
from luthier.core.identity import digest
from luthier.core.recipe import Node, Recipe
from luthier.core.rng import Rng
from luthier.core.run import Run, now
from luthier.core.step import Ctx, Progress, silent

if TYPE_CHECKING:
    from luthier.engine.workshop import Engine


@dataclass
class Watcher:
    """Who is told what happens; every method may be replaced."""

    started: Callable[[str, int, int], None] = lambda name, n, of: None
    finished: Callable[[str, float, bool], None] = lambda name, seconds, cached: None
    log: Callable[[str], None] = lambda text: None
    progress: Progress = silent


def execute(recipe: Recipe, folder: Path, engine: Engine, watcher: Watcher | None = None, fresh: bool = False) -> Run:
    """Run what has not run yet and return the run.

    Raises:
        UserError: bad input, found before anything expensive.
        GateError: a receipt differs; the step is kept as a failure.
    """
    watcher = watcher or Watcher()
    for node in recipe.nodes:
        node.step.check()
    if fresh and (folder / "run.json").exists():
        with Run(folder).locked():  # refuses while another process works there
            shutil.rmtree(folder)
    run = Run.start(folder, recipe)
    try:
        with run.locked():
            kept = run.record.get("decisions", {})
            if kept and kept["exact"] != engine.exact:
                raise UserError(f"{folder} was begun {'with' if kept['exact'] else 'without'} --exact. Run its command "
                                "again as it was, give another folder with --out, or start over with --fresh.")
            run.update(decisions=engine.decide(kept))
            execute_nodes(recipe, folder / "steps", engine, watcher, run.log)
            run.update(state="finished", finished=run.record.get("finished") or now(), decisions=engine.decisions)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise UserError(f"Can't write to {folder}: {os.strerror(error.errno)}. What is finished is kept; make room and run "
                            "the same command again.") from error
        raise
    return run


def execute_nodes(recipe: Recipe, root: Path, engine: Engine, watcher: Watcher,
                  log: Callable[[str], None], given: Mapping[str, Artifact] | None = None) -> dict[str, Artifact]:
    """Run a recipe's steps under `root`; `given` are artifacts from outside, by step name."""
    done: dict[str, Artifact] = dict(given or {})
    nodes = [n for n in recipe.nodes if n.name not in done]
    for number, node in enumerate(nodes, 1):
        watcher.started(node.name, number, len(nodes))
        inputs = {wanted: done[source] for wanted, source in node.inputs.items()}
        key = digest({"step": node.step.identity, "content": node.step.content(),
                      "seed": recipe.seed if type(node.step).seeded else None,
                      "inputs": {n: a.identity for n, a in inputs.items()}})
        final = root / node.name
        kept = _finished(final, key)
        if kept is not None:
            done[node.name] = kept
            watcher.finished(node.name, 0.0, True)
            continue
        began = time.monotonic()
        done[node.name] = _run_one(node, inputs, key, root, Rng(recipe.seed), engine, watcher, log)
        watcher.finished(node.name, time.monotonic() - began, False)
    return done


def _finished(folder: Path, key: str) -> Artifact | None:
    path = folder / "step.json"
    return open_artifact(folder) if path.exists() and read_json(path)["key"] == key else None


def _run_one(node: Node, inputs: Mapping[str, Artifact], key: str, root: Path, rng: Rng, engine: Engine,
             watcher: Watcher, log: Callable[[str], None]) -> Artifact:
    work = root / f".{node.name}.work"
    if _finished(work, key) is not None:
        # A kill came between the last line of the work and its new name.
        return _commit(work, root / node.name)
    state = work / "state.json"
    if work.exists() and (not state.exists() or read_json(state)["key"] != key):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    if not state.exists():
        write_json(state, {"key": key, "started": now(), "seconds": 0.0})
    record = read_json(state)

    def say(text: str) -> None:
        log(f"[{node.name}] {text}")
        watcher.log(f"{node.name}: {text}")

    ctx = Ctx(rng=rng.within(node.name), folder=work, journal=Journal(work / "journal.jsonl"), engine=engine,
              stream=lambda name: inputs[name.partition(".")[0]].examples(name.partition(".")[2]),
              log=say, progress=watcher.progress)
    began = time.monotonic()
    try:
        artifact = node.step.run(inputs, ctx)
        receipts = node.step.receipts(inputs, artifact, ctx)
    except BaseException as error:
        spent = record["seconds"] + time.monotonic() - began
        _keep_failure(work, record, spent, error)
        raise
    seconds = record["seconds"] + time.monotonic() - began
    write_lines(work / "receipts.jsonl", (r.to_dict() for r in receipts))
    broken = [r for r in receipts if r.verdict == "differs"]
    if broken:
        gate = GateError(f"Step '{node.name}' left two things that must agree but differ: {broken[0].name}: "
                         f"{broken[0].left} against {broken[0].right}. {broken[0].detail}")
        _keep_failure(work, record, seconds, gate)
        raise gate
    write_json(work / "step.json", {
        "name": node.name, "use": node.step.info.name, "version": node.step.info.version, "kind": artifact.kind, "key": key,
        "identity": artifact.identity, "inputs": {n: a.identity for n, a in inputs.items()},
        "started": record["started"], "finished": now(), "seconds": round(seconds, 3), "log": "log.txt",
    })
    log(f"[{node.name}] finished in {seconds:.1f} s")
    return _commit(work, root / node.name)


def _commit(work: Path, final: Path) -> Artifact:
    for name in ("state.json", "failure.json"):
        (work / name).unlink(missing_ok=True)
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    commit_folder(work, final)
    return open_artifact(final)


def _keep_failure(work: Path, record: dict[str, Any], seconds: float, error: BaseException) -> None:
    """Best effort: on a full disk the failure itself can't be written, and the error must still be shown."""
    try:
        write_json(work / "state.json", {**record, "seconds": seconds})
        shown = str(error) if isinstance(error, LuthierError) else traceback.format_exc()
        write_json(work / "failure.json", {"when": now(), "type": type(error).__name__, "error": shown})
    except OSError:
        return
