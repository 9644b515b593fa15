"""Checkup: what is wrong with this machine, installation, cache or run, and the one command that mends it.

Every check is a small function that looks at one thing and returns `(verdict, sentence, command)`. A check must not
need what it checks: torch is only imported inside the checks that ask about it, and a failed import is an answer.
"""

from __future__ import annotations

import importlib
import importlib.util
import locale
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from luthier.core.artifact import content_of
from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.core.identity import hash_folder
from luthier.engine.packages import cache_folder

Verdict = Literal["ok", "warn", "fail"]
Answer = tuple[Verdict, str, str]
MB = 1e6
LITTLE_DISK_MB, NO_DISK_MB = 5_000, 500
LITTLE_MEMORY_MB, NO_MEMORY_MB = 2_000, 600
EXTRAS = {"gguf": "gemma3-270m and other GGUF files", "sentencepiece": "tokenizers of SentencePiece"}
# The least driver version of each CUDA release, from NVIDIA's table of CUDA minor-version compatibility.
DRIVERS = {"11": 450.80, "12": 525.60, "13": 580.65}


@dataclass(frozen=True)
class Result:
    """One check's answer."""

    name: str
    verdict: Verdict
    sentence: str
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def python() -> Answer:
    """The interpreter is of a version that is supported."""
    version = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        return "fail", f"Python {version}; Luthier needs 3.11 to 3.13.", "make setup PYTHON=python3.12"
    return "ok", f"Python {version}.", ""


def torch_import() -> Answer:
    """torch can be imported."""
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # a broken library may raise anything at all
        return "fail", f"torch can't be imported: {type(error).__name__}: {error}.", \
            f"{sys.executable} -m pip install --force-reinstall torch"
    return "ok", f"torch {torch.__version__}.", ""


def bfloat16() -> Answer:
    """Whether bfloat16 is faster than float32 on this processor."""
    torch = _torch()
    if torch is None:
        return "warn", "Not measured: torch can't be imported.", ""
    from luthier.engine.workshop import _bfloat16_speedup

    speed = _bfloat16_speedup(256, 4)
    if speed < 1.1:
        return "warn", f"bfloat16 products are {speed:.1f} times as fast as float32 here: language models train in float32, " \
            "with twice the memory.", ""
    return "ok", f"bfloat16 products are {speed:.1f} times as fast as float32.", ""


def threads() -> Answer:
    """Threads asked for, processors this process may use, and the control group's limit agree."""
    may = len(os.sched_getaffinity(0))
    limit = _cgroup_processors()
    most = min(may, max(1, round(limit))) if limit else may
    asked = os.environ.get("OMP_NUM_THREADS")
    if asked and not asked.split(",")[0].isdigit():
        return "fail", f"OMP_NUM_THREADS={asked!r} is not a number.", f"export OMP_NUM_THREADS={most}"
    if asked and int(asked.split(",")[0]) > most:
        return "warn", f"OMP_NUM_THREADS={asked}, but this process may use {most} processors: threads wait for each other.", \
            f"export OMP_NUM_THREADS={most}"
    if asked and int(asked.split(",")[0]) < most:
        return "warn", f"OMP_NUM_THREADS={asked} leaves {most - int(asked.split(',')[0])} of {most} processors idle.", \
            f"export OMP_NUM_THREADS={most}"
    if limit and limit < may - 0.5 and not asked:
        return "warn", f"The control group allows {limit:g} processors of {may}: threads wait for each other.", \
            f"export OMP_NUM_THREADS={most}"
    return "ok", f"{most} processors, {'OMP_NUM_THREADS=' + asked if asked else 'a thread each'}.", ""


def compiler() -> Answer:
    """A C++ compiler and Python's headers, which torch.compile wants; without them everything runs uncompiled."""
    found = next((c for c in (os.environ.get("CXX"), "g++", "clang++", "c++") if c and shutil.which(c)), None)
    if found is None:
        return "warn", "No C++ compiler: kernels run uncompiled, with the same numbers.", "sudo apt-get install g++"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        wanted = f"python{sys.version_info[0]}.{sys.version_info[1]}-dev"
        return "warn", "Python's headers are missing: kernels run uncompiled, with the same numbers.", \
            f"sudo apt-get install {wanted}"
    return "ok", f"{found} and Python's headers.", ""


def cache_disk() -> Answer:
    """The cache can be written and has room."""
    return _place(cache_folder(), "LUTHIER_CACHE")


def runs_disk() -> Answer:
    """The folder in which runs are made can be written and has room."""
    return _place(Path.cwd() / "runs", "--out")


def memory() -> Answer:
    """Memory that is free for this process."""
    from luthier.engine.memory import available_mb

    free = available_mb()
    if free < NO_MEMORY_MB:
        return "fail", f"{free:,.0f} MB of memory are free; loading the libraries alone takes about {NO_MEMORY_MB} MB.", \
            "ps aux --sort=-rss | head"
    if free < LITTLE_MEMORY_MB:
        return "warn", f"{free:,.0f} MB of memory are free: enough for small models only.", "luthier plan DATA"
    return "ok", f"{free:,.0f} MB of memory are free.", ""


def extras() -> Answer:
    """Packages that only some bases need."""
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        uses = "; ".join(f"{n} ({EXTRAS[n]})" for n in missing)
        return "warn", f"Not installed: {uses}.", 'pip install "luthier[demo]"'
    return "ok", "gguf and sentencepiece are installed.", ""


def cache_entries() -> Answer:
    """Models in the cache are whole, and no conversion left its work behind."""
    folder = cache_folder() / "models"
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    for entry in (e for e in entries if e.is_dir()):
        mend = f"rm -r {entry}"
        if entry.name.startswith("."):
            return "warn", f"A conversion that was killed left {entry}.", mend
        record = entry / "checksum.json"
        if not record.exists():
            return "fail", f"{entry} has no checksum: it is half a model.", mend
        try:
            told = read_json(record)["sha256"]
        except (UserError, KeyError, TypeError):
            return "fail", f"{record} is damaged.", mend
        size = sum(p.stat().st_size for p in entry.rglob("*") if p.is_file())
        if any(p.is_symlink() and not p.exists() for p in entry.iterdir()):
            return "fail", f"{entry} has links that lead nowhere.", mend
        if size < 1e9 and hash_folder(entry, frozenset({"checksum.json"})) != told:
            return "fail", f"{entry} is not what its checksum says.", mend
    return "ok", f"{len(entries)} models in {folder} are whole." if entries else f"{folder} is empty.", ""


def encoding() -> Answer:
    """Text is read and printed as UTF-8."""
    found = locale.getpreferredencoding(False)
    shown = getattr(sys.stdout, "encoding", None) or found
    odd = [e for e in (found, shown) if e.lower().replace("-", "") != "utf8"]
    if odd:
        return "warn", f"The locale says {odd[0]}: umlauts and signs of other scripts are not shown.", "export PYTHONUTF8=1"
    return "ok", "UTF-8.", ""


def versions() -> Answer:
    """Every package that Luthier needs is installed in a version that it allows."""
    from packaging.requirements import Requirement

    try:
        needed = metadata.requires("luthier") or []
    except metadata.PackageNotFoundError:
        return "warn", "Luthier runs from its source without being installed: versions can't be compared.", "pip install -e ."
    for text in needed:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            return "fail", f"{wanted.name} is not installed.", f'pip install "{wanted.name}{wanted.specifier}"'
        if not wanted.specifier.contains(found, prereleases=True):
            return "fail", f"{wanted.name} {found} is installed; Luthier needs {wanted.specifier}.", \
                f'pip install "{wanted.name}{wanted.specifier}"'
    return "ok", "All packages are in the ranges that Luthier allows.", ""


def cuda() -> Answer:
    """torch is built for what this machine has: a CUDA build needs a driver that is new enough."""
    torch = _torch()
    if torch is None:
        return "warn", "Not asked: torch can't be imported.", ""
    built, driver = torch.version.cuda, _driver()
    plain = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cpu"
    if not built:
        if driver:
            return "warn", f"There is a GPU driver ({driver:g}), but torch is built for the processor alone.", \
                "pip install --force-reinstall torch"
        return "ok", "torch is built for the processor; there is no GPU driver.", ""
    if driver is None:
        return "warn", f"torch is built for CUDA {built}, and there is no GPU driver: gigabytes that nothing uses.", plain
    least = DRIVERS.get(built.split(".")[0], 0.0)
    if driver < least:
        return "fail", f"torch is built for CUDA {built}, which needs driver {least:g}; this machine has {driver:g}.", \
            "sudo apt-get install nvidia-driver-" + str(int(least))
    return "ok", f"torch for CUDA {built}, driver {driver:g}.", ""


def network() -> Answer:
    """What decides whether hub ids can be fetched."""
    from luthier.engine.hub import asked_offline

    variable = asked_offline()
    if variable:
        return ("warn", f"{variable} is set: models that are not on this machine can't be fetched by hub id.",
                f"unset {variable}")
    proxy = next((n for n in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy") if os.environ.get(n)), None)
    if proxy and not re.match(r"(https?|socks5h?)://[^\s/]+", os.environ[proxy]):
        return "fail", f"{proxy} is not the address of a proxy (http://HOST:PORT).", f"unset {proxy}"
    if proxy:
        return "ok", f"Hub ids are fetched through {proxy}.", ""
    return "ok", "Hub ids can be fetched; nothing else asks the network.", ""


CHECKS: dict[str, Callable[[], Answer]] = {
    "python": python, "torch": torch_import, "versions": versions, "bfloat16": bfloat16, "threads": threads,
    "compiler": compiler, "cuda": cuda, "memory": memory, "disk for the cache": cache_disk, "disk for runs": runs_disk,
    "cache": cache_entries, "extras": extras, "text encoding": encoding, "network": network}


def check_all(run: Path | None = None) -> Iterator[Result]:
    """Every check in turn, and those of a run if one is named."""
    for name, check in CHECKS.items():
        try:
            yield Result(name, *check())
        except Exception as error:  # a check that breaks has found something, and the others must still answer
            yield Result(name, "fail", f"The check itself broke: {type(error).__name__}: {error}.")
    if run is not None:
        yield from check_run(run)


def check_run(folder: Path) -> Iterator[Result]:
    """What is unfinished or damaged in a run.

    Raises:
        UserError: the folder is no run.
    """
    from luthier.core.run import Run

    run = Run.open(folder)
    again = "luthier " + " ".join(run.record.get("argv", ["", "tune"])[1:])
    if run.record.get("state") != "finished":
        yield Result("run", "warn", f"{folder} is not finished.", again)
    else:
        yield Result("run", "ok", f"{folder} is finished.")
    for work in sorted((folder / "steps").glob(".*.work")):
        failure = work / "failure.json"
        name = work.name[1:].removesuffix(".work")
        why = str(read_json(failure)["error"]).strip().splitlines()[-1] if failure.exists() else "it was killed"
        yield Result(f"step {name}", "warn", f"Stopped: {why}", again)
    for step in sorted(p for p in (folder / "steps").glob("*") if p.is_dir() and not p.name.startswith(".")):
        problem = damage(step)
        if problem:
            yield Result(f"step {step.name}", "fail", problem, f"rm -r {step} && {again}")


def damage(step: Path) -> str:
    """What is wrong with a finished step's files, or nothing. The weights of a base lie elsewhere: see `whole_base`."""
    try:
        for name in ("luthier.json", "step.json"):
            if not (step / name).exists():
                return f"{step} has no {name}."
        record, told = read_json(step / "luthier.json"), read_json(step / "step.json")
        if record["identity"] != told["identity"]:
            return f"{step}: its records name two identities."
    except (UserError, KeyError, TypeError) as error:
        return f"{step}: {error}"
    if "path" in record:
        there = step / record["path"]
        if not there.exists():
            return f"The base of {step} is gone: {there}."
    # Steps of before this was written down can't be compared.
    same = told.get("content", "") in ("", content_of(step))
    return "" if same else f"{step}: its files were changed after it was finished."


def whole_base(step: Path) -> str:
    """What is wrong with the weights that a base names, or nothing where they have no checksum, too."""
    record = step / str(read_json(step / "luthier.json").get("path", "")) / "checksum.json"
    if not record.exists() or hash_folder(record.parent, frozenset({"checksum.json"})) == read_json(record)["sha256"]:
        return ""
    return f"{record.parent} is not what its checksum says."


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except Exception:
        return None


def _place(folder: Path, option: str) -> Answer:
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return "fail", f"{folder} can't be written.", f"export {option}=/another/folder" if option.isupper() else \
            "luthier tune DATA --out /another/folder"
    free = shutil.disk_usage(place).free / MB
    if free < NO_DISK_MB:
        return "fail", f"{place} has {free:,.0f} MB free: no model fits.", f"du -xh --max-depth=1 {place} | sort -h"
    if free < LITTLE_DISK_MB:
        return ("warn", f"{place} has {free:,.0f} MB free: enough for small models only.",
                f"du -xh --max-depth=1 {place} | sort -h")
    return "ok", f"{place} has {free / 1e3:,.0f} GB free.", ""


def _cgroup_processors(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    try:
        quota, period = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _driver(path: Path = Path("/proc/driver/nvidia/version")) -> float | None:
    """Major and minor number of the GPU driver, as a number; None where there is none."""
    try:
        found = re.search(r"Kernel Module\D*(\d+\.\d+)", path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return float(found[1]) if found else None
