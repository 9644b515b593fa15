"""A run that is killed at any moment and started again by the same command ends as if nothing had happened."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.cli.conftest import QUICK, call, same_results, start, step_files

Moment = Callable[[Path], bool]


def within(step: str) -> Moment:
    """While a step works."""
    return lambda run: (run / "steps" / f".{step}.work" / "state.json").exists()


def journalled(step: str) -> Moment:
    """When a step has kept something to go on from."""
    def come(run: Path) -> bool:
        path = run / "steps" / f".{step}.work" / "journal.jsonl"
        return path.exists() and path.stat().st_size > 0

    return come


def trained(steps: int) -> Moment:
    """When a checkpoint of at least so many training steps is there."""
    return lambda run: any(int(p.name.removeprefix("step-")) >= steps
                           for p in run.glob("steps/.tuned.work/checkpoints/step-*"))


FEW = [journalled("index"), trained(2), journalled("arm-base-retrieval")]
EVERY_STAGE = [
    within("documents"), within("index"), within("questions"), journalled("questions"), within("split"), within("tuned"),
    trained(1), trained(4), within("arm-base"), journalled("arm-base"), within("arm-base-retrieval"),
    within("arm-tuned"), within("arm-tuned-retrieval"), within("comparison")]


def kill(process: subprocess.Popen[str], come: Callable[[], bool]) -> bool:
    """Kill a process when the moment has come; False when it ended before."""
    while not come():
        if process.poll() is not None:
            process.communicate()
            return False
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def survive(manual: Path, run: Path, moments: Sequence[Moment]) -> None:
    """Start the run, kill it at each moment, and finish it; no finished step is done again."""
    command = ["adapt", manual, "--out", run, *QUICK]
    finished: dict[str, tuple[int, int]] = {}
    for number, moment in enumerate(moments):
        process = start(*command)
        assert kill(process, lambda m=moment: m(run)), f"the run ended before moment {number}"
        now = step_files(run)
        assert now.items() >= finished.items()
        finished = now
    assert call(*command) == 0
    assert step_files(run).items() >= finished.items()


def test_killed_while_it_indexes_trains_and_answers(manual: Path, manual_run: Path, tmp_path: Path) -> None:
    survive(manual, tmp_path / "run", FEW)
    same_results(manual_run, tmp_path / "run")


@pytest.mark.slow
def test_killed_in_every_stage(manual: Path, manual_run: Path, tmp_path: Path) -> None:
    survive(manual, tmp_path / "run", EVERY_STAGE)
    same_results(manual_run, tmp_path / "run")


@pytest.mark.slow
def test_killed_at_twenty_random_moments(manual: Path, manual_run: Path, tmp_path: Path) -> None:
    draw, kills, runs = random.Random(1), 0, 0
    while kills < 20:
        run = tmp_path / f"run-{runs}"
        command = ["adapt", manual, "--out", run, *QUICK]
        process = start(*command)
        seen, wait = _traces(run), draw.uniform(0, 0.7)
        # The clock of the draw starts with the first trace of work: the start of Python is longer than most steps.
        began: list[float] = []

        def come(run: Path = run, seen: object = seen, wait: float = wait, began: list[float] = began) -> bool:
            if not began and _traces(run) != seen:
                began.append(time.monotonic())
            return bool(began) and time.monotonic() - began[0] >= wait

        if kill(process, come):
            kills += 1
            continue
        runs += 1
        assert process.returncode == 0
        same_results(manual_run, run)
    assert call("adapt", manual, "--out", run, *QUICK) == 0
    same_results(manual_run, run)


def _traces(run: Path) -> list[tuple[str, int]]:
    """Files and sizes of a run, as far as they can be seen while it works."""
    found = []
    for path in [*run.glob("*"), *run.glob("steps/*"), *run.glob("steps/*/*")]:
        try:
            found.append((str(path), path.stat().st_size))
        except OSError:
            continue
    return sorted(found)
