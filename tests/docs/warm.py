"""A process that has loaded what commands load, and runs each command that it is told in a fork of its own.

A line in is {"argv", "folder", "out", "err"}: arguments, where to run, and the files that get what is said. A line out is
the exit code. So a command has a process, a folder and an end of its own, and the libraries are loaded once for all.
"""

from __future__ import annotations

import json
import os
import sys

import peft  # noqa: F401
import torch  # noqa: F401
import transformers

import luthier.engine.workshop
import luthier.pipelines.jobs  # noqa: F401
from luthier.cli.main import process

LOADED = transformers.AutoModelForCausalLM, transformers.AutoTokenizer  # loaded when they are named


def run(argv: list[str], folder: str, out: str, err: str) -> None:
    """Become the command; does not return."""
    os.chdir(folder)
    for name, number in ((os.devnull, 0), (out, 1), (err, 2)):
        opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["luthier", *argv]
    process()


if __name__ == "__main__":
    told, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for line in told:
        child = os.fork()
        if not child:
            run(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
