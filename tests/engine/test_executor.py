"""The step executor: what has run is kept, what changed runs again, what failed is named and goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from luthier.core.errors import GateError, UserError
from luthier.core.files import read_json, read_lines
from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.engine.executor import Watcher, execute
from tests.contracts import dummies


class Decided:
    """As much of an engine as the executor asks for."""

    exact = True
    decisions: ClassVar[dict] = {"threads": 1, "exact": True}

    def decide(self, kept):
        return self.decisions


ENGINE = Decided()


def recipe(seed: int = 0, **rows) -> Recipe:
    """rows -> copy -> last: each step notes every call in calls.txt."""
    return Recipe({"seed": seed, "steps": {
        "rows": {"use": "dummy-rows", **rows},
        "copy": {"use": "dummy-copy", "inputs": {"rows": "rows"}},
        "last": {"use": "dummy-copy", "inputs": {"rows": "copy", "more": "rows"}}}})


def calls(folder: Path) -> list[str]:
    """Names of the steps that were run since the last look."""
    path = folder / "calls.txt"
    names = [line.strip(".").removesuffix(".work") for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return names


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def test_a_finished_run_is_not_run_again(folder):
    run = execute(recipe(), folder, ENGINE)
    assert calls(folder) == ["rows", "copy", "last"]
    cached = []
    again = execute(recipe(), folder, ENGINE, Watcher(finished=lambda name, seconds, hit: cached.append((name, hit))))
    assert calls(folder) == [] and cached == [("rows", True), ("copy", True), ("last", True)]
    assert [e.id for e in again.step("last").examples()] == ["row0", "row1"]
    assert run.record["state"] == "finished" and run.record["decisions"] == ENGINE.decisions
    assert list(run.steps()) == ["rows", "copy", "last"] and run.has("copy") and not run.has("other")


def test_changed_content_runs_again_and_no_more_than_must(folder, tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("one")
    execute(recipe(file=str(outside)), folder, ENGINE)
    calls(folder)
    outside.write_text("two")
    execute(recipe(file=str(outside)), folder, ENGINE)
    assert calls(folder) == ["rows"], "the rows are the same, so what reads them is kept"


def test_a_step_that_is_gone_runs_again(folder):
    import shutil

    execute(recipe(), folder, ENGINE)
    calls(folder)
    shutil.rmtree(folder / "steps/copy")
    execute(recipe(), folder, ENGINE)
    assert calls(folder) == ["copy"]


def test_a_new_version_of_a_step_runs_again(folder, monkeypatch):
    from luthier.core.component import Info

    execute(recipe(), folder, ENGINE)
    calls(folder)
    monkeypatch.setattr(dummies.DummyCopy, "info", Info("step", "dummy-copy", 2, ()))
    with pytest.raises(UserError, match="a component has another version"):
        execute(recipe(), folder, ENGINE)
    execute(recipe(), folder, ENGINE, fresh=True)
    assert calls(folder) == ["rows", "copy", "last"]


def test_a_failure_is_kept_and_the_work_goes_on(folder, tmp_path):
    marker = tmp_path / "fail"
    marker.touch()
    with pytest.raises(dummies.Killed):
        execute(recipe(fails=str(marker)), folder, ENGINE)
    work = folder / "steps/.rows.work"
    failure = read_json(work / "failure.json")
    assert failure["type"] == "Killed" and "told to fail" in failure["error"] and failure["when"]
    first = read_lines(work / "journal.jsonl")
    assert not Run.open(folder).has("rows")
    marker.unlink()
    execute(recipe(fails=str(marker)), folder, ENGINE)
    assert calls(folder) == ["rows", "rows", "copy", "last"]
    left = folder / "steps/rows"
    assert read_lines(left / "journal.jsonl") == first, "the journal of the first attempt was read"
    assert not (left / "failure.json").exists() and not (left / "state.json").exists() and not work.exists()
    assert read_json(left / "step.json")["seconds"] >= 0


def test_two_things_that_differ_stop_the_run(folder):
    with pytest.raises(GateError, match=r"Step 'rows' left two things.*dummy/rows: 2 against 3") as caught:
        execute(recipe(differs=True), folder, ENGINE)
    assert caught.value.exit_code == 3
    work = folder / "steps/.rows.work"
    assert read_json(work / "failure.json")["type"] == "GateError"
    assert read_lines(work / "receipts.jsonl")[0]["verdict"] == "differs"
    assert not (folder / "steps/rows").exists() and calls(folder) == ["rows"]


def test_findings_of_all_steps_are_read_together(folder):
    run = execute(recipe(), folder, ENGINE)
    assert [(f.name, f.verdict) for f in run.findings()] == [("dummy/rows", "agrees")]
    assert "[rows] finished" in (folder / "log.txt").read_text()


def test_the_folder_of_another_recipe_is_refused(folder):
    execute(recipe(), folder, ENGINE)
    with pytest.raises(UserError, match="belongs to another recipe: rows.count is 2, not 5"):
        execute(recipe(count=5), folder, ENGINE)
    with pytest.raises(UserError, match="its seed is 0, not 4"):
        execute(recipe(seed=4), folder, ENGINE)
    was = recipe().fill()
    for number in range(5):
        was["steps"][f"more{number}"] = was["steps"]["rows"]
    del was["steps"]["last"]
    with pytest.raises(UserError, match="it has the steps last and it lacks more0, more1, more2 and 2 more. Give another"):
        execute(Recipe(was), folder, ENGINE)
    execute(recipe(count=5), folder, ENGINE, fresh=True)
    assert len(list(Run.open(folder).step("last").examples())) == 5


def test_a_folder_that_is_no_run_is_left_alone(folder):
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(UserError, match="not empty and is not a run"):
            execute(recipe(), folder, ENGINE, fresh=fresh)
    assert (folder / "thesis.txt").read_text() == "mine"


def test_two_processes_do_not_work_in_one_folder(folder):
    execute(recipe(), folder, ENGINE)
    code = ("import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
            "print('locked', flush=True); sys.stdin.read()")
    other = subprocess.Popen([sys.executable, "-c", code, str(folder / ".lock")], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        for fresh in (False, True):
            with pytest.raises(UserError, match="Another process is working"):
                execute(recipe(), folder, ENGINE, fresh=fresh)
        assert Run.open(folder).has("last"), "nothing of the other's work was touched"
    finally:
        other.communicate("")
    execute(recipe(), folder, ENGINE)


def test_a_kill_between_finishing_and_renaming_loses_nothing(folder, monkeypatch):
    from luthier.engine import run_step

    right = run_step.commit_folder
    monkeypatch.setattr(run_step, "commit_folder", lambda work, final: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        execute(recipe(), folder, ENGINE)
    monkeypatch.setattr(run_step, "commit_folder", right)
    assert calls(folder) == ["rows"]
    execute(recipe(), folder, ENGINE)
    assert calls(folder) == ["copy", "last"]


def test_a_mistake_is_refused_before_the_folder_is_made(folder):
    bad = Recipe({"steps": {"base": {"use": "base", "model": "nowhere"}}})
    with pytest.raises(UserError, match="There is no base 'nowhere'"):
        execute(bad, folder, ENGINE)
    assert not folder.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_said_in_words_and_keeps_what_is_finished(folder, monkeypatch, number):
    def full(self, inputs, ctx):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(dummies.DummyCopy, "run", full)
    with pytest.raises(UserError, match="What is finished is kept; make room"):
        execute(recipe(), folder, ENGINE)
    monkeypatch.undo()
    assert Run.open(folder).has("rows")
    calls(folder)
    execute(recipe(), folder, ENGINE)
    assert calls(folder) == ["copy", "last"]


def test_equal_steps_draw_the_same_numbers_in_every_run(tmp_path):
    made = [execute(recipe(), tmp_path / name, ENGINE) for name in "ab"]
    assert len({r.step("last").identity for r in made}) == 1
    keys = [{n: s["key"] for n, s in r.steps().items()} for r in made]
    assert keys[0] == keys[1] and len(set(keys[0].values())) == 3
    other = execute(recipe(seed=1), tmp_path / "c", ENGINE).steps()
    assert all(other[n]["key"] != keys[0][n] for n in other)
