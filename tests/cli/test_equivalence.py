"""Configurations that promise the same training give the same training, through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Luthier, curve, question_rows, refused, tensors, write_rows


@pytest.fixture
def tune(luthier: Luthier, tmp_path: Path):
    """`tune(name, *options)`: the run folder of a short exact training."""
    data = write_rows(tmp_path / "rows.jsonl", question_rows())

    def make(name: str, *options: str) -> Path:
        said = luthier("tune", data, "--base", "pico", "--out", name, "--exact", "--set", "tuned.length={steps: 4}", *options)
        assert said.code == 0, said.err
        return Path(name)

    return make


def test_rows_in_one_go_equal_rows_two_by_two(tune) -> None:
    whole, parts = tune("whole", "--set", "tuned.micro_rows=8"), tune("parts", "--set", "tuned.micro_rows=2")
    for one, two in zip(curve(whole), curve(parts), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
        assert one["tokens"] == two["tokens"]
    left, right = tensors(whole), tensors(parts)
    assert left.keys() == right.keys()
    assert all((left[n] - right[n]).abs().max() <= 1e-5 for n in left)


def test_a_seed_is_a_run(tune) -> None:
    first, again, other = tune("first", "--seed", "1"), tune("again", "--seed", "1"), tune("other", "--seed", "2")
    assert curve(first) == curve(again)
    assert curve(first) != curve(other)
    left, right = tensors(first), tensors(again)
    assert left.keys() == right.keys() and all(left[n].equal(right[n]) for n in left)
    assert any(not left[n].equal(t) for n, t in tensors(other).items())


def test_checkpoints_leave_no_trace(tune) -> None:
    often, never = tune("often", "--set", "tuned.checkpoint_seconds=0"), tune("never")
    assert curve(often) == curve(never)
    left, right = tensors(often), tensors(never)
    assert all(left[n].equal(right[n]) for n in left)


def test_a_default_written_out_changes_nothing(tune) -> None:
    silent, said = tune("silent"), tune("said", "--method", "lora:rank=8,alpha=16", "--set", "tuned.batch_rows=8")
    assert curve(silent) == curve(said)


def test_what_was_measured_at_the_start_holds_to_the_end(luthier: Luthier, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.core.files import read_json
    from luthier.engine import workshop
    from luthier.engine.steps.fit import Fit

    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    command = ["tune", write_rows(tmp_path / "rows.jsonl", question_rows()), "--base", "pico", "--out", "run",
               "--set", "tuned.length={steps: 2}"]
    monkeypatch.setattr(workshop, "_bfloat16_speedup", lambda: 3.0)
    with monkeypatch.context() as patch:
        patch.setattr(Fit, "run", interrupt)
        assert luthier(*command).code == 130
    assert read_json(Path("run/run.json"))["decisions"]["bfloat16_speedup"] == 3.0
    # The machine is busy now and would measure otherwise.
    monkeypatch.setattr(workshop, "_bfloat16_speedup", lambda: 0.5)
    assert luthier(*command).code == 0
    assert read_json(Path("run/steps/tuned/luthier.json"))["fit"]["decisions"]["dtype"] == "bfloat16"
    assert read_json(Path("run/run.json"))["decisions"]["bfloat16_speedup"] == 3.0


def test_exact_is_not_answered_from_a_run_that_was_not(luthier: Luthier, tmp_path: Path) -> None:
    command = ["tune", write_rows(tmp_path / "rows.jsonl", question_rows()), "--base", "pico", "--out", "run",
               "--set", "tuned.length={steps: 2}"]
    assert luthier(*command).code == 0
    refused(luthier(*command, "--exact"), "--exact", "--fresh")
