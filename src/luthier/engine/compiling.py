"""Whether functions can be compiled here, found by trying; and compiling them.

`LUTHIER_COMPILE=0` switches compiling off. What is found and what is compiled is kept in Luthier's cache folder.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from luthier.core.files import read_json, write_json
from luthier.engine.packages import cache_folder

TRIAL = '#include <Python.h>\nextern "C" int twice(int x) { return 2 * x; }\n'
PATIENCE_SECONDS = 60


def available() -> bool:
    """Whether a C++ compiler and Python's headers are here; tried once for each compiler and version of torch."""
    if os.environ.get("LUTHIER_COMPILE", "1") == "0":
        return False
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    return compiler is not None and _works(compiler, cache_folder() / "compile")


@cache
def _works(compiler: str, folder: Path) -> bool:
    """The kept answer for this compiler, or the answer of a trial."""
    asked = _output([compiler, "--version"])
    if asked is None:
        return False
    key = f"torch {torch.__version__}, Python {platform.python_version()}, {asked.splitlines()[0]}"
    record = folder / "trials.json"
    kept = read_json(record) if record.exists() else {}
    if key not in kept:
        kept[key] = _compiles(compiler)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, kept)
    return bool(kept[key])


def _compiles(compiler: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "trial.cpp"
        source.write_text(TRIAL, encoding="utf-8")
        return _output([compiler, "-shared", "-fPIC", "-fopenmp", f"-I{sysconfig.get_paths()['include']}", str(source),
                        "-o", str(Path(folder) / "trial.so")]) is not None


def _output(command: list[str]) -> str | None:
    """What the command printed, or None where it can't be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled at its first call, for all sizes at once."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compile" / "inductor"))
    # One small function does not need a pool of compiling processes and their memory.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    fast: Callable[..., Any] = torch.compile(function, dynamic=True)
    return fast
