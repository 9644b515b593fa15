"""Make the environment `.venv` for this checkout: `make setup`, or `python3 scripts/setup.py`.

Needs nothing but a Python 3.11, 3.12 or 3.13 (the variable PYTHON names one; else it is looked for). What could stop
it is checked first, and each lack is reported with the command that mends it. Then pip installs the project, editable,
with its extras `demo`, `code`, `office`, `serve`, `ui`, `docs` and `dev` at the versions pinned in `constraints.txt`. A
stamp in `.venv` records from what it was made; as long as that is unchanged nothing is done, so every `make` target
works offline after that.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LEGAL = ((3, 11), (3, 12), (3, 13))
TESTED = ((3, 11), "Linux", "x86_64")  # what constraints.txt was made with
CANDIDATES = ("python3.11", "python3.12", "python3.13", "python3")  # the tested one first
NEED_DISK, NEED_DISK_CUDA, NEED_TEMP = 4.0e9, 10.0e9, 1.0e9
EXTRAS = "demo,code,office,serve,ui,docs,dev"
BUILD_TOOLS = ("hatchling", "editables")  # installed first, so that the build needs no environment of its own

PROBE = """
import importlib.util, sys
missing = [m for m in ("venv", "ensurepip") if importlib.util.find_spec(m) is None]
print(sys.executable, *sys.version_info[:3], ",".join(missing), sep="|")
"""
UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
FETCHED = re.compile(r"\s*(Downloading|Using cached) (\S+) \(([\d.]+) (bytes|kB|MB|GB)\)")
LOCAL = re.compile(r"\s*Processing (\S+\.whl)")
NOT_RESOLVED = ("ResolutionImpossible", "No matching distribution found", "conflicting dependencies")


class SetupError(Exception):
    """What is lacking, and the command that mends it."""


class Python(NamedTuple):
    """An interpreter: its path, its version and the modules it lacks."""

    path: str
    version: tuple[int, int, int]
    missing: tuple[str, ...]


class Fetched(NamedTuple):
    """What pip took from where: number of packages, and bytes by origin."""

    packages: int
    downloaded: float
    cached: float
    local: float


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the environment .venv of this checkout.")
    parser.parse_args()
    try:
        setup(ROOT, os.environ.get("PYTHON", ""))
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("setup: interrupted; the next `make setup` goes on", file=sys.stderr)
        return 130
    return 0


def setup(root: Path, asked: str = "") -> bool:
    """Bring `.venv` up to date. Returns whether anything had to be done."""
    venv = root / ".venv"
    if is_current(root, venv, asked):
        return False
    if venv.exists() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").exists():
        raise SetupError(f"{venv} is in the way: it is no virtual environment. Move it: mv .venv venv-old")
    python = choose([asked] if asked else CANDIDATES)
    has = folder_bytes(venv)
    notice = check_disk(root, free_bytes(root) + has, free_bytes(Path(tempfile.gettempdir())))
    version = ".".join(map(str, python.version))
    print(f"setup: Python {version} at {python.path}; installing into .venv")
    if notice:
        print(f"setup: {notice}")
    clear = must_clear(root, venv, python)
    run([python.path, "-m", "venv", *(["--clear"] if clear else []), str(venv)])
    fetched = install(root, venv, python)
    write_stamp(root, venv)
    print(f"setup: {report(fetched)} .venv takes {gigabytes(folder_bytes(venv))}.")
    return True


# ---------------------------------------------------------------- the stamp


def is_current(root: Path, venv: Path, asked: str = "") -> bool:
    """Whether `.venv` was made, to the end, from today's files, at this place and with the Python asked for."""
    stamp, version = read_stamp(venv), venv_version(venv)
    if not stamp or not version or not (venv / "bin" / "python").exists():
        return False
    if stamp != stamp_lines(root, version):
        return False
    if not asked:
        return True
    python = probe(asked)
    return python is not None and python.version[:2] == tuple(int(part) for part in version.split(".")[:2])


def stamp_lines(root: Path, version: str) -> list[str]:
    """The stamp: SHA-256 over both files and the version of Python; then the place, for scripts hold absolute paths."""
    digest = hashlib.sha256()
    for part in ((root / "pyproject.toml").read_bytes(), (root / "constraints.txt").read_bytes(), version.encode()):
        digest.update(hashlib.sha256(part).digest())  # digests, so that no part can run into the next
    return [digest.hexdigest(), str(root)]


def read_stamp(venv: Path) -> list[str]:
    file = venv / ".luthier-stamp"
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def write_stamp(root: Path, venv: Path) -> None:
    lines = stamp_lines(root, venv_version(venv))
    (venv / ".luthier-stamp").write_text("\n".join(lines) + "\n", encoding="utf-8")


def venv_version(venv: Path) -> str:
    """`3.11.7`, read from pyvenv.cfg without starting Python; empty if there is no environment."""
    file = venv / "pyvenv.cfg"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    found = re.search(r"^version(?:_info)?\s*=\s*(\d+\.\d+\.\d+)", text, re.MULTILINE)
    return found[1] if found else ""


def must_clear(root: Path, venv: Path, python: Python) -> bool:
    """Whether an old environment is of no use: another Python, or a checkout that has moved."""
    stamp, version = read_stamp(venv), venv_version(venv)
    moved = len(stamp) > 1 and stamp[1] != str(root)
    return moved or (bool(version) and version.split(".")[:2] != [str(part) for part in python.version[:2]])


# ---------------------------------------------------------------- checks before anything is done


def probe(command: str) -> Python | None:
    """What `command` is, or None if it does not start."""
    path = shutil.which(command)
    if path is None:
        return None
    try:
        answer = subprocess.run([path, "-I", "-c", PROBE], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    fields = answer.stdout.strip().split("|")
    if answer.returncode or len(fields) != 5:
        return None
    version = int(fields[1]), int(fields[2]), int(fields[3])
    return Python(fields[0], version, tuple(name for name in fields[4].split(",") if name))


def choose(commands: Iterable[str]) -> Python:
    """The first of `commands` that is a legal and complete Python.

    Raises:
        SetupError: none is; says what was found and names the command that mends it.
    """
    commands = list(commands)
    found = [(command, probe(command)) for command in commands]
    fit = [python for _, python in found if python is not None and python.version[:2] in LEGAL]
    for python in fit:
        if not python.missing:
            return python
    if fit:
        raise SetupError(
            f"{fit[0].path} lacks the module {' and '.join(fit[0].missing)}. Install it: {mend(fit[0].version)}"
        )
    seen = [f"{name} is {'.'.join(map(str, py.version))}" if py else f"{name} does not start" for name, py in found]
    raise SetupError(
        f"Python 3.11, 3.12 or 3.13 is needed ({'; '.join(seen)}). Install one: {mend(None)}"
        " (or name one: make setup PYTHON=/path/to/python3.11)"
    )


def mend(version: tuple[int, ...] | None) -> str:
    """The one command that installs Python with venv and ensurepip, by the package manager at hand."""
    name = "python3" if version is None else f"python{version[0]}.{version[1]}"
    dotted = "3.11" if version is None else f"{version[0]}.{version[1]}"
    for tool, command in (
        ("apt-get", f"apt-get install {name} {name}-venv"),
        ("dnf", f"dnf install python{dotted}"),
        ("brew", f"brew install python@{dotted}"),
    ):
        if shutil.which(tool):
            return command
    return f"take Python {dotted} from python.org"


def check_disk(root: Path, free: float, free_temp: float, system: str = platform.system()) -> str:
    """Refuse where the disk is too small for any build of torch; a sentence where it may be too small for one.

    Raises:
        SetupError: less than 4 GB for `.venv`, or 1 GB for pip's temporary files.
    """
    if free < NEED_DISK:
        raise SetupError(
            f".venv needs about {gigabytes(NEED_DISK)}; {gigabytes(free)} are free at {root}."
            f" See what takes space: du -xh --max-depth=2 {root.anchor or '/'} | sort -h | tail"
        )
    if free_temp < NEED_TEMP:
        raise SetupError(
            f"pip needs about {gigabytes(NEED_TEMP)} for temporary files; {gigabytes(free_temp)} are free at"
            f" {tempfile.gettempdir()}. Name a larger folder: TMPDIR=/path make setup"
        )
    if system == "Linux" and free < NEED_DISK_CUDA:
        return (
            f"{gigabytes(free)} are free. That is enough for torch's CPU build; its CUDA build, the usual one on Linux,"
            f" needs {gigabytes(NEED_DISK_CUDA)}. pip's own settings choose the index that the build comes from."
        )
    return ""


def free_bytes(folder: Path) -> float:
    return float(shutil.disk_usage(folder).free)


# ---------------------------------------------------------------- installing


def install(root: Path, venv: Path, python: Python) -> Fetched:
    """Install the build tools, then the project with its extras. What pip says goes to `.venv/luthier-setup.log`."""
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--no-input", "--progress-bar", "off",
           "--disable-pip-version-check", "--only-binary", ":all:"]
    log = venv / "luthier-setup.log"
    pins = ["-c", str(root / "constraints.txt")]
    project = ["--no-build-isolation", "-e", f"{root}[{EXTRAS}]"]
    log.write_text("", encoding="utf-8")
    code, lines = stream([*pip, *pins, *BUILD_TOOLS], log)
    if code == 0:
        code, more = stream([*pip, *pins, *project], log)
        lines += more
    here = (python.version[:2], platform.system(), platform.machine())
    if code and here != TESTED and any(sign in line for line in lines for sign in NOT_RESOLVED):
        print("setup: constraints.txt was made for Python 3.11 on Linux x86-64 and can't be met here; going on without"
              " it, with the ranges of pyproject.toml. This is not the tested environment.")
        code, lines = stream([*pip, *BUILD_TOOLS], log)
        if code == 0:
            code, more = stream([*pip, *project], log)
            lines += more
    if code:
        tail = "".join(f"  {line}\n" for line in lines[-12:])
        raise SetupError(
            f"pip could not install the project (all it said: {log}). Its last words:\n{tail}"
            "The first setup needs pip's package index. When it can be reached: make setup"
        )
    return tally(lines)


def stream(command: list[str], log: Path) -> tuple[int, list[str]]:
    """Run `command`, keep its lines, write them to `log` and show the ones worth waiting for."""
    lines = []
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=log.parent)
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            lines.append(line.rstrip("\n"))
            found = FETCHED.match(line)
            if (found and float(found[3]) * UNITS[found[4]] >= 2e7) or line.startswith("Installing collected"):
                print(f"  {line.strip()[:110]}", flush=True)
        return process.wait(), lines


def run(command: list[str]) -> None:
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise SetupError(f"this failed: {' '.join(command)}\n{(answer.stdout + answer.stderr).strip()}")


# ---------------------------------------------------------------- what it took


def tally(lines: Iterable[str]) -> Fetched:
    """Count packages and bytes in pip's own lines; metadata files count as bytes only."""
    packages, taken = 0, {"Downloading": 0.0, "Using cached": 0.0, "Processing": 0.0}
    for line in lines:
        found = FETCHED.match(line)
        if found:
            taken[found[1]] += float(found[3]) * UNITS[found[4]]
            packages += not found[2].endswith(".metadata")
        elif (wheel := LOCAL.match(line)) and Path(wheel[1]).is_file():
            taken["Processing"] += Path(wheel[1]).stat().st_size
            packages += 1
    return Fetched(packages, *taken.values())


def report(fetched: Fetched) -> str:
    """One sentence on what was downloaded and what need not be."""
    if not fetched.packages:
        return "Downloaded nothing."
    spared = [f"{megabytes(size)} came from {origin}" for size, origin in
              ((fetched.cached, "pip's cache"), (fetched.local, "files on this machine")) if size]
    return (f"Installed {fetched.packages} packages: {megabytes(fetched.downloaded)} downloaded"
            + "".join(f", {text}" for text in spared) + ".")


def folder_bytes(folder: Path) -> float:
    """Bytes that the files below `folder` take; a file with several names counts once."""
    total, seen = 0.0, set()
    for parent, _, names in os.walk(folder):
        for name in names:
            state = os.lstat(os.path.join(parent, name))
            if (state.st_dev, state.st_ino) not in seen:
                seen.add((state.st_dev, state.st_ino))
                total += state.st_blocks * 512
    return total


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
