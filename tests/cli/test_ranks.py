"""`tune` under a launcher: the run of one process, through a kill and to the last answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import SOURCE, call, curve, question_rows, tensors, write_rows
from tests.engine.test_ranks import launch

# 17 rows to train on, 8 a step: the last batch has one row, and the second rank none.
SETTINGS = ["--base", "pico", "--exact", "--set", "tuned.length={epochs: 3}", "--set", "tuned.batch_rows=8",
            "--set", "tuned.checkpoint_seconds=0"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", question_rows())


def same_training(one: Path, two: Path) -> None:
    """Losses to 1e-6, weights to what that leaves, and the same answers."""
    import torch

    left, right = curve(one), curve(two)
    assert [r["tokens"] for r in left] == [r["tokens"] for r in right]
    for a, b in zip(left, right, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6, rel=1e-6)
    ours, theirs = tensors(one), tensors(two)
    assert ours.keys() == theirs.keys() and all(torch.allclose(ours[n], theirs[n], atol=1e-5) for n in ours)
    assert not list(two.glob("steps/.*.work")) and json.loads((two / "run.json").read_text())["state"] == "finished"


def command(rows: Path, out: Path, method: str = "lora:dropout=0") -> list[object]:
    return ["luthier.cli.main", "tune", rows, "--out", out, *SETTINGS, "--method", method]


def test_two_ranks_killed_half_way_end_as_one_process_does(rows: Path, tmp_path: Path) -> None:
    assert call(*command(rows, tmp_path / "one")[1:]) == 0
    out = tmp_path / "two"
    both = launch(*command(rows, out), PYTHONPATH=SOURCE)
    while not list(out.glob("steps/.tuned.work/checkpoints/step-000000[4-8]")):
        assert all(p.poll() is None for p in both), [p.communicate() for p in both]
        time.sleep(0.001)
    for process in both:
        process.send_signal(signal.SIGKILL)
    for process in both:
        process.communicate()
    assert not (out / "steps/tuned").exists()
    both = launch(*command(rows, out), PYTHONPATH=SOURCE)
    said = [p.communicate(timeout=300) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert "Receipts:" in said[0][0] and "training goes on at step" in said[0][1]
    assert said[1] == ("", ""), "only the first rank speaks"
    same_training(tmp_path / "one", out)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_the_launchers_start_it(rows: Path, tmp_path: Path, launcher: str) -> None:
    assert call(*command(rows, tmp_path / "one")[1:]) == 0
    start = {"torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"],
             "accelerate": ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
                            "--num_machines", "1", "--main_process_port", "0", "-m"]}[launcher]
    said = subprocess.run([sys.executable, *start, *map(str, command(rows, tmp_path / "two"))], text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}, timeout=300)
    assert said.returncode == 0, said.stderr
    same_training(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_sharded_weights_are_saved_whole(rows: Path, tmp_path: Path) -> None:
    further = ["--set", "tuned.learning_rate=1e-3"]
    assert call(*command(rows, tmp_path / "one", "full")[1:], *further) == 0
    both = launch(*command(rows, tmp_path / "two", "full"), *further, "--set", "tuned.sharding=fsdp", PYTHONPATH=SOURCE)
    said = [p.communicate(timeout=300) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    same_training(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_what_is_wrong_ends_both(rows: Path, tmp_path: Path) -> None:
    both = launch(*command(rows, tmp_path / "two"), "--executor", "processes", PYTHONPATH=SOURCE)
    said = [p.communicate(timeout=300) for p in both]
    assert [p.returncode for p in both] == [2, 2] and "does not go with a launcher" in said[0][1]
