"""The sandbox: what a model wrote runs here and nowhere else.

Each program runs in a process of its own (`confined.py`) that may compute and read the standard library, and where its
limits say so write below a temporary folder, which is deleted: no network, no further process, no signal to another, no
other file; killed when it takes too long, needs too much memory or says too much. Where the kernel can't promise this the
program is refused; there is no way to run it without.

Whether a program succeeded is told by the process that it ran in. A program that leaves early (`sys.exit`, `os._exit`) has
not succeeded, whatever its exit code; one that searched the interpreter for how success is told could still pretend it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from luthier.core.errors import LuthierError, UserError

CHILD = Path(__file__).with_name("confined.py")
Outcome = Literal["ok", "error", "timeout", "memory", "output", "exit", "killed"]


@dataclass(frozen=True)
class Limits:
    """What one program may take: seconds of the processor (four times as many by the clock), megabytes
    of memory, kilobytes that it says.

    files_mb: megabytes of each file that it may write in its temporary folder; 0 lets it write none.
    """

    seconds: float = 5.0
    memory_mb: int = 512
    files_mb: int = 0
    output_kb: int = 64

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0 or not (value or name == "files_mb"):
                raise UserError(f"sandbox: {name} is {value}; it must be greater than 0.")


@dataclass(frozen=True)
class Executed:
    """How a program ended: `error` is the exception's name, `text` its traceback, `output` what it printed."""

    outcome: Outcome
    error: str
    text: str
    output: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it came to its end without an exception."""
        return self.outcome == "ok"


def execute(programs: Sequence[str], limits: Limits | None = None, workers: int | None = None) -> list[Executed]:
    """Run Python programs, each alone, `workers` at a time (all processors by default); results in their order.

    Raises:
        UserError: this machine can't confine a program.
    """
    limits = limits or Limits()
    if not programs:
        return []
    if not sys.platform.startswith("linux"):
        raise UserError(f"Programs that a model wrote run in a sandbox only, and it needs Linux; this is {sys.platform}.")
    given = {"programs": list(programs), "limits": asdict(limits), "workers": workers or len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory(prefix="luthier-sandbox-") as folder:
        # No site packages, no variables of the user, and the same order of sets every time.
        done = subprocess.run([sys.executable, "-S", "-s", "-P", "-B", str(CHILD)], input=json.dumps(given), text=True,
                              capture_output=True, cwd=folder, env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}, check=False)
    found = {row["number"]: row for row in map(json.loads, done.stdout.splitlines())}
    if len(found) < len(programs):
        raise LuthierError(f"The sandbox ended early: {done.stderr.strip()[-300:]}")
    for row in found.values():
        if row["outcome"] == "refused":
            raise UserError("Programs that a model wrote run in a sandbox only, and this machine can't confine one: "
                            f"{row['text']}. Needed are seccomp and Landlock, which Linux has from 6.2 on.")
    return [Executed(**{k: v for k, v in found[n].items() if k != "number"}) for n in range(len(programs))]
