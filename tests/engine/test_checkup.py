"""Every check of the doctor with a fault made for it, and without."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.files import write_json
from luthier.core.identity import hash_folder
from luthier.engine import checkup

Disk = namedtuple("Disk", "total used free")
Fault = Any


@pytest.fixture
def cache_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def _old_python(patch: Fault, cache: Path) -> None:
    patch.setattr(sys, "version_info", (3, 9, 1))


def _broken_torch(patch: Fault, cache: Path) -> None:
    def refuse(name: str) -> Any:
        raise ImportError("libtorch.so is missing")

    patch.setattr(importlib, "import_module", refuse)


def _no_luthier(patch: Fault, cache: Path) -> None:
    patch.setattr(metadata, "requires", lambda name: ["numpy>=999"])


def _absent(patch: Fault, cache: Path) -> None:
    patch.setattr(metadata, "requires", lambda name: ["no-such-package-at-all>=1"])


def _slow_bfloat16(patch: Fault, cache: Path) -> None:
    patch.setattr("luthier.engine.workshop._bfloat16_speedup", lambda *a: 0.3)


def _many_threads(patch: Fault, cache: Path) -> None:
    patch.setenv("OMP_NUM_THREADS", "4096")


def _odd_threads(patch: Fault, cache: Path) -> None:
    patch.setenv("OMP_NUM_THREADS", "all")


def _small_group(patch: Fault, cache: Path) -> None:
    patch.delenv("OMP_NUM_THREADS", raising=False)
    patch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    patch.setattr(checkup, "_cgroup_processors", lambda: 2.0)


def _no_compiler(patch: Fault, cache: Path) -> None:
    patch.setattr(checkup.shutil, "which", lambda name: None)


def _no_headers(patch: Fault, cache: Path) -> None:
    patch.setattr(checkup.shutil, "which", lambda name: "/usr/bin/g++")
    patch.setattr(checkup.sysconfig, "get_paths", lambda: {"include": "/nowhere"})


def _torch_for(cuda: str | None) -> Any:
    return lambda: SimpleNamespace(version=SimpleNamespace(cuda=cuda))


def _no_driver(patch: Fault, cache: Path) -> None:
    patch.setattr(checkup, "_torch", _torch_for("12.8"))
    patch.setattr(checkup, "_driver", lambda: None)


def _old_driver(patch: Fault, cache: Path) -> None:
    patch.setattr(checkup, "_torch", _torch_for("12.8"))
    patch.setattr(checkup, "_driver", lambda: 470.82)


def _unused_gpu(patch: Fault, cache: Path) -> None:
    patch.setattr(checkup, "_torch", _torch_for(None))
    patch.setattr(checkup, "_driver", lambda: 550.0)


def _no_memory(patch: Fault, cache: Path) -> None:
    patch.setenv("LUTHIER_MEMORY_LIMIT_MB", "100")


def _little_memory(patch: Fault, cache: Path) -> None:
    patch.setenv("LUTHIER_MEMORY_LIMIT_MB", "1000")


def _full_disk(patch: Fault, cache: Path) -> None:
    patch.setattr(checkup.shutil, "disk_usage", lambda place: Disk(10**9, 10**9, 10**6))


def _closed_disk(patch: Fault, cache: Path) -> None:
    patch.setattr(os, "access", lambda *a: False)


def _no_gguf(patch: Fault, cache: Path) -> None:
    patch.setattr(importlib.util, "find_spec", lambda name: None)


def _entry(cache: Path) -> Path:
    entry = cache / "models" / "pico-1"
    entry.mkdir(parents=True)
    (entry / "config.json").write_text("{}")
    write_json(entry / "checksum.json", {"sha256": hash_folder(entry)})
    return entry


def _changed_entry(patch: Fault, cache: Path) -> None:
    (_entry(cache) / "config.json").write_text("[]")


def _half_entry(patch: Fault, cache: Path) -> None:
    (_entry(cache) / "checksum.json").unlink()


def _damaged_record(patch: Fault, cache: Path) -> None:
    (_entry(cache) / "checksum.json").write_text("{")


def _killed_conversion(patch: Fault, cache: Path) -> None:
    _entry(cache).rename(cache / "models" / ".pico-xyz")


def _dead_link(patch: Fault, cache: Path) -> None:
    (_entry(cache) / "model.safetensors").symlink_to("/nowhere")


def _latin(patch: Fault, cache: Path) -> None:
    patch.setattr(checkup.locale, "getpreferredencoding", lambda ask: "ISO-8859-1")


def _offline(patch: Fault, cache: Path) -> None:
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.delenv("LUTHIER_OFFLINE_DEFAULT", raising=False)


def _odd_proxy(patch: Fault, cache: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        patch.delenv(name, raising=False)
    patch.setenv("HTTPS_PROXY", "proxy without an address")


FAULTS = [
    ("python", _old_python, "fail", "3.9.1"), ("torch", _broken_torch, "fail", "libtorch.so is missing"),
    ("versions", _no_luthier, "fail", "needs >=999"), ("versions", _absent, "fail", "not installed"),
    ("bfloat16", _slow_bfloat16, "warn", "0.3 times"), ("threads", _many_threads, "warn", "threads wait"),
    ("threads", _odd_threads, "fail", "'all' is not a number"), ("threads", _small_group, "warn", "allows 2 processors of 8"),
    ("compiler", _no_compiler, "warn", "No C++ compiler"), ("compiler", _no_headers, "warn", "headers"),
    ("cuda", _no_driver, "warn", "no GPU driver"), ("cuda", _old_driver, "fail", "needs driver 525.6"),
    ("cuda", _unused_gpu, "warn", "processor alone"), ("memory", _no_memory, "fail", "100 MB"),
    ("memory", _little_memory, "warn", "1,000 MB"), ("disk for the cache", _full_disk, "fail", "1 MB free"),
    ("disk for runs", _closed_disk, "fail", "can't be written"), ("extras", _no_gguf, "warn", "gguf"),
    ("cache", _changed_entry, "fail", "checksum says"), ("cache", _half_entry, "fail", "half a model"),
    ("cache", _damaged_record, "fail", "is damaged"), ("cache", _killed_conversion, "warn", "was killed"),
    ("cache", _dead_link, "fail", "lead nowhere"), ("text encoding", _latin, "warn", "ISO-8859-1"),
    ("network", _offline, "warn", "HF_HUB_OFFLINE is set"), ("network", _odd_proxy, "fail", "HTTPS_PROXY")]


@pytest.mark.parametrize(("name", "fault", "verdict", "said"), FAULTS)
def test_a_fault_is_found(name: str, fault: Any, verdict: str, said: str, cache_here: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fault(patch, cache_here)
        found, sentence, command = checkup.CHECKS[name]()
    assert (found, said in sentence) == (verdict, True), sentence
    assert command or name == "bfloat16", "whatever is wrong has a command that mends it"


def test_every_check_has_a_fault() -> None:
    assert {name for name, *_ in FAULTS} == set(checkup.CHECKS)


def test_a_whole_cache_is_whole(cache_here: Path) -> None:
    _entry(cache_here)
    assert checkup.cache_entries()[0] == "ok"


def test_a_check_that_breaks_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(checkup, "CHECKS", {"one": broken, "two": checkup.python})
    assert [r.verdict for r in checkup.check_all()] == ["fail", "ok"]


@pytest.mark.parametrize(("code", "broken"), [(0, False), (2, True)])
def test_the_command_without_torch(tmp_path: Path, code: int, broken: bool) -> None:
    """Its exit code says whether something fails; it answers when torch can't be imported."""
    if broken:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('broken on purpose')")
    source = str(Path(checkup.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "luthier.cli.main", "doctor", "--json"], capture_output=True, text=True, check=False,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{source}", "LUTHIER_CACHE": str(tmp_path / "c"),
                           "OMP_NUM_THREADS": "1", "LUTHIER_MEMORY_LIMIT_MB": ""})
    assert done.stdout, done.stderr
    found = {c["name"]: c for c in json.loads(done.stdout)["checks"]}
    assert (found["torch"]["verdict"] == "fail") is broken
    assert done.returncode == (2 if any(c["verdict"] == "fail" for c in found.values()) else 0)
    assert done.returncode == code or any(c["verdict"] == "fail" for n, c in found.items() if n != "torch")


def test_a_run_that_was_stopped_and_one_that_was_changed(tmp_path: Path) -> None:
    from luthier.core.artifact import content_of, seal

    run = tmp_path / "run"
    write_json(run / "run.json", {"state": "started", "argv": ["luthier", "tune", "rows.jsonl"]})
    write_json(run / "steps" / ".tuned.work" / "failure.json", {"error": "The loss of step 3 is nan"})
    whole = run / "steps" / "rows"
    whole.mkdir()
    (whole / "data").write_text("one")
    identity = seal("examples", whole).identity
    write_json(whole / "step.json", {"identity": identity, "content": content_of(whole)})
    found = {r.name: r for r in checkup.check_run(run)}
    assert found["run"].verdict == "warn" and found["run"].command == "luthier tune rows.jsonl"
    assert "The loss of step 3 is nan" in found["step tuned"].sentence and "step rows" not in found
    (whole / "data").write_text("two")
    assert {r.name: r for r in checkup.check_run(run)}["step rows"].verdict == "fail"
