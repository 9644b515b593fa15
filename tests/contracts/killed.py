"""Trains in child processes that are killed at given steps, then to the end; prints what the last one left.

`python -m tests.contracts.killed FOLDER KILL_AT…`: each KILL_AT is `STEP:MILLISECONDS`, the moment after that step of
that attempt; FOLDER/fit.json may hold further fields of the fit. One process loads the libraries and forks the attempts,
since loading takes longer than training.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from luthier.core.artifact import open_artifact
from luthier.core.files import Journal, read_lines
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.engine import forward, loop, rendering  # noqa: F401  (loaded once, before the forks)
from luthier.engine.steps.fit import Fit
from luthier.engine.workshop import Engine
from tests.contracts import dummies  # noqa: F401  (registers the dummies)

STEPS = 12


def train(root: Path, name: str) -> None:
    """One attempt in `root/name`, from the last checkpoint to the end."""
    engine = Engine(threads=1, exact=True)
    inputs = {"base": open_artifact(root / "base"), "examples": open_artifact(root / "examples")}
    folder = root / name
    folder.mkdir(exist_ok=True)
    report = {"use": "dummy-memory", "report": str(root / f"{name}.steps"), "pause": 0.01}
    fit = Fit(method="lora:dropout=0.2", regularizers=(report,), length={"steps": STEPS}, batch_rows=3, micro_rows=2,
              learning_rate=1e-2, checkpoint_seconds=0, **further(root))
    ctx = Ctx(Rng(0).within("fit"), folder, Journal(folder / "journal.jsonl"), engine,
              stream=lambda name: inputs["examples"].examples(name.partition(".")[2]))
    fit.run(inputs, ctx)


def further(root: Path) -> dict:
    """Fields of the fit that a test wrote beside the data."""
    return json.loads((root / "fit.json").read_text()) if (root / "fit.json").exists() else {}


def attempt(root: Path, name: str, kill_at: tuple[int, int] | None) -> int:
    """Fork one attempt, kill it where asked, and return the signal that ended it (0 = its own end)."""
    report = root / f"{name}.steps"
    before = len(report.read_text().splitlines()) if report.exists() else 0
    child = os.fork()
    if child == 0:
        try:
            train(root, name)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    if kill_at is not None:
        step, milliseconds = kill_at
        while not report.exists() or len(report.read_text().splitlines()) < before + step:
            if os.waitpid(child, os.WNOHANG)[0]:
                raise SystemExit("the attempt ended before it could be killed")
            time.sleep(0.001)
        time.sleep(milliseconds / 1000)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"an attempt in {name} failed")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main() -> None:
    root = Path(sys.argv[1])
    kills = [tuple(map(int, a.split(":"))) for a in sys.argv[2:]]
    signals = [attempt(root, "killed", k) for k in kills] + [attempt(root, "killed", None)]
    attempt(root, "whole", None)
    left = {n: (open_artifact(root / n).identity, [{k: v for k, v in r.items() if k != "seconds"} for r in
                                                  read_lines(root / n / "curve.jsonl")]) for n in ("killed", "whole")}
    steps = {n: len((root / f"{n}.steps").read_text().splitlines()) for n in ("killed", "whole")}
    print(json.dumps({"signals": signals, "left": left, "steps": steps}))


if __name__ == "__main__":
    main()
