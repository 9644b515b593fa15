"""A training that is killed again and again: `python -m tests.engine.kills BASE OUT SEED KILLS`.

Each attempt is a fork of a process that has the libraries and has computed nothing yet, so that kills are cheap. Half of
the kills come while a checkpoint is being written, the others at any time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from luthier.core.artifact import open_artifact
from luthier.engine.workshop import Engine
from tests.engine import pair

STEPS = 40


def attempt(base: Path, folder: Path) -> int:
    """The training in a process of its own, from its last checkpoint; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        engine = Engine(threads=1, exact=True)
        loop = pair.trained(open_artifact(base), engine, folder, steps=STEPS, dropout=0.3, checkpoint_seconds=0)
        (folder.parent / "result.json").write_text(json.dumps(pair.result(loop)))
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def step_of(folder: Path) -> int:
    """The last step whose checkpoint is whole; 0 before the first."""
    return max((int(p.name[5:]) for p in folder.glob("checkpoints/step-*")), default=0)


def saving(folder: Path) -> Callable[[], bool]:
    """While the next checkpoint but a few is being written."""
    begun = step_of(folder)
    return lambda: step_of(folder) > begun and (folder / "checkpoints/part").exists()


def passing(folder: Path, steps: int, seconds: float) -> Callable[[], bool]:
    """Some time after some more steps."""
    begun, at = step_of(folder), []

    def come() -> bool:
        if not at and step_of(folder) >= begun + steps:
            at.append(time.monotonic())
        return bool(at) and time.monotonic() - at[0] >= seconds

    return come


def main(base: Path, out: Path, seed: int, kills: int) -> None:
    """Kill, then finish once; says at which steps the kills came."""
    draw = random.Random(seed)
    at: list[str] = []
    while len(at) < kills:
        folder = out / "now/loop"
        half = draw.random() < 0.5
        come = saving(folder) if half else passing(folder, draw.randrange(3), draw.uniform(0, 0.05))
        child = attempt(base, folder)
        while not come():
            ended, code = os.waitpid(child, os.WNOHANG)
            if ended:
                assert code == 0, "the training failed"
                os.rename(folder.parent, out / f"done-{len(list(out.glob('done-*')))}")
                break
            time.sleep(0.0002)
        else:
            os.kill(child, signal.SIGKILL)
            if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
                at.append(f"{step_of(folder)}{' saving' if half else ''}")
    ended, code = os.waitpid(attempt(base, folder), 0)
    assert code == 0
    os.rename(folder.parent, out / f"done-{len(list(out.glob('done-*')))}")
    print(f"seed {seed}: killed at steps {', '.join(at)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
