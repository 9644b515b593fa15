"""Steps in processes: the same keys, results, failures and resumes as in one process, and nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from luthier.core.errors import GateError, LuthierError, UserError
from luthier.core.files import read_json, read_lines
from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.engine.executor import Watcher, execute
from luthier.engine.processes import share_of_machine
from luthier.engine.run_step import described, restored
from tests.contracts import dummies
from tests.engine.test_executor import ENGINE, calls

ROOT = Path(__file__).parents[2]


def fork(seed: int = 0, **two) -> Recipe:
    """Two steps that don't need each other, and one that needs both."""
    return Recipe({"seed": seed, "steps": {
        "one": {"use": "dummy-rows", "count": 2}, "two": {"use": "dummy-rows", "count": 3, **two},
        "both": {"use": "dummy-copy", "inputs": {"rows": "one", "more": "two"}}}})


def processes(recipe: Recipe, folder: Path, watcher: Watcher | None = None) -> Run:
    return execute(recipe, folder, ENGINE, watcher, executor="processes:2")


def working(folder: Path, name: str) -> bool:
    return (folder / f"steps/.{name}.work/journal.jsonl").exists()


def until(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def workers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if "luthier.engine.run_step" in (p.info["cmdline"] or [])
            and p.environ().get("PYTEST_CURRENT_TEST", "").startswith("tests/engine/test_processes")]


def test_results_are_those_of_one_process_and_run_at_the_same_time(tmp_path):
    local = execute(fork(), tmp_path / "local", ENGINE)
    seen: list[tuple[str, str]] = []
    progress: list[tuple[str, int, int]] = []
    watcher = Watcher(started=lambda name, n, of: seen.append(("started", name)), log=lambda text: seen.append(("log", text)),
                      finished=lambda name, seconds, hit: seen.append(("finished", name)),
                      progress=lambda name: lambda done, total, unit="", **shown: progress.append((name, done, total)))
    made = processes(fork(), tmp_path / "made", watcher)
    wanted, found = local.steps(), made.steps()
    assert {n: (s["key"], s["identity"], s["inputs"]) for n, s in wanted.items()} == \
        {n: (s["key"], s["identity"], s["inputs"]) for n, s in found.items()}
    assert [e.id for e in made.step("both").examples()] == ["row0", "row1"]
    assert [what for what in seen if what[0] == "started"][:2] == seen[:2], "the second started before the first ended"
    assert sorted(n for what, n in seen if what == "finished") == ["both", "one", "two"]
    assert ("log", "one: 2 rows") in seen and ("two", 3, 3) in progress
    pids = {n: read_lines(made.folder / f"steps/{n}/journal.jsonl")[0]["value"] for n in ("one", "two")}
    assert len({*pids.values(), os.getpid()}) == 3
    assert made.record["executor"] == {"name": "processes:2", "at_once": 2}
    # In the order in which steps finished, which is any.
    assert sorted(map(str, made.findings())) == sorted(map(str, local.findings()))
    assert "[both] finished" in (made.folder / "log.txt").read_text()
    assert calls(tmp_path / "made") and processes(fork(), tmp_path / "made").record["state"] == "finished"
    assert calls(tmp_path / "made") == [] and not workers()


def test_a_failure_is_kept_and_does_not_stop_what_runs(tmp_path):
    marker = tmp_path / "fail"
    marker.touch()
    with pytest.raises(RuntimeError, match=r"step 'two' failed in its process:(.|\n)*told to fail"):
        processes(fork(fails=str(marker)), tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert run.has("one") and not run.has("two") and not run.has("both")
    assert read_json(run.folder / "steps/.two.work/failure.json")["type"] == "Killed"
    marker.unlink()
    calls(run.folder)
    execute(fork(fails=str(marker)), run.folder, ENGINE)
    assert calls(run.folder) == ["two", "both"], "what one executor began, another finishes"


def test_a_killed_worker_is_a_failure_of_its_step(tmp_path):
    with pytest.raises(LuthierError, match=r"The process of step 'two' was ended by SIGKILL \(often"):
        processes(fork(dies=True), tmp_path / "dies")
    assert "SIGKILL" in read_json(tmp_path / "dies/steps/.two.work/failure.json")["error"]
    assert Run.open(tmp_path / "dies").has("one") and not workers()


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_end_of_the_parent_is_the_end_of_its_workers(tmp_path, number):
    run = tmp_path / "run"
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
            "from tests.engine import test_processes as t; t.processes(t.fork(seconds=60), Path(sys.argv[2]))")
    parent = subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(run)], stderr=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    until(lambda: working(run, "two") or parent.poll() is not None)
    assert workers(), parent.communicate()
    with pytest.raises(UserError, match="Another process is working"):
        execute(fork(seconds=60), run, ENGINE)
    parent.send_signal(number)
    parent.communicate(timeout=30)
    until(lambda: not workers(), 10)
    failure = run / "steps/.two.work/failure.json"
    assert failure.exists() == (number == signal.SIGINT), "an interrupted step knows it was"
    first = read_lines(run / "steps/.two.work/journal.jsonl")
    (run / "steps/.two.work/go").touch()  # the step need not wait a second time
    execute(fork(seconds=60), run, ENGINE)
    assert read_lines(run / "steps/two/journal.jsonl") == first


def test_a_folder_is_runnable_alone(tmp_path):
    marker = tmp_path / "fail"
    marker.touch()
    with pytest.raises(dummies.Killed):
        execute(fork(fails=str(marker)), tmp_path / "run", ENGINE)
    marker.unlink()
    work = tmp_path / "run/steps/.two.work"
    said = subprocess.run([sys.executable, "-m", "luthier.engine.run_step", str(work)], text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])})
    assert said.returncode == 0 and "3 rows" in said.stderr, said.stderr
    calls(tmp_path / "run")
    execute(fork(fails=str(marker)), tmp_path / "run", ENGINE)
    assert calls(tmp_path / "run") == ["both"]


def test_the_machine_is_shared_once_and_for_all(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    monkeypatch.setattr("luthier.engine.processes.available_mb", lambda: 100_000.0)
    assert share_of_machine(fork()) == (3, 2), "no more at once than there are steps"
    assert share_of_machine(fork(), most=2) == (2, 4)
    assert share_of_machine(fork(), threads=8) == (1, 8), "threads stay as they were decided"
    assert share_of_machine(fork(), threads=4) == (2, 4)
    monkeypatch.setattr("luthier.engine.processes.available_mb", lambda: 1_500.0)
    assert share_of_machine(fork()) == (2, 4), "memory for two"
    monkeypatch.setattr("luthier.engine.processes.available_mb", lambda: 10.0)
    assert share_of_machine(fork()) == (1, 8)


@pytest.mark.parametrize("text, words", [
    ("ray:127.0.0.1:1", "can't be reached: .*ray:local|Ray is not installed"), ("proceses", "Did you mean 'processes'"),
    ("processes:0", "write local, processes, processes:N or ray:ADDRESS"), ("local:2", "write local"), ("processes:", None)])
def test_an_executor_that_is_none_is_refused(tmp_path, text, words):
    from luthier.engine.executor import check_executor

    if words is None:
        return check_executor(text)
    with pytest.raises(UserError, match=words):
        execute(fork(), tmp_path / "run", ENGINE, executor=text)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [UserError("a"), GateError("b"), LuthierError("c"), OSError(28, "No space left on device")])
def test_errors_cross_processes(error):
    back = restored("x", described(error))
    assert type(back) is type(error) and str(back) == str(error)
