"""`--executor`: the same command with the same results, wherever its steps run."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import SHORT, Luthier, call, finish, refused, same_results, start


def test_processes_give_what_one_process_gives(answers_run: Path, tmp_path: Path) -> None:
    command = ["tune", answers_run.parent / "rows.jsonl", "--base", "pico", "--out", tmp_path / "run", "--exact", *SHORT]
    said = finish(start(*command, "--executor", "processes:2"))
    assert said.code == 0, said.err
    same_results(answers_run, tmp_path / "run")
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["executor"] == {"name": "processes:2", "at_once": 2} and record["decisions"]["threads"] == 1
    assert "tuned: done in" in said.err and "tuned: 3 of 3 steps" in said.err and "Receipts:" in said.out
    assert call(*command) == 0, "the run goes on under another executor: there is nothing left to do"


def test_an_executor_that_is_none_is_refused(luthier: Luthier, answers_run: Path) -> None:
    rows = answers_run.parent / "rows.jsonl"
    refused(luthier("tune", rows, "--base", "pico", "--out", "run", "--executor", "ray"), "--executor ray needs an address")
    answer = luthier("evaluate", answers_run, rows, "--executor", "threads")
    refused(answer, "write local, processes, processes:N or ray:ADDRESS")
    assert not Path("run").exists()
