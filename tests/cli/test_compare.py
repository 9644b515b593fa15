"""`luthier compare`: arms on equal rows, with verdicts; the second call finds everything done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Luthier, call, label_rows, question_rows, refused, write_manual, write_rows

SHORT = ["--set", "tuned.length={steps: 2}", "--exact"]
TWO = ["--method", "lora:rank=4", "--method", "bitfit"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two arms and three seeds. Tests read it and leave it as it is."""
    place = tmp_path_factory.mktemp("compared")
    write_rows(place / "rows.jsonl", label_rows(40))
    assert call("compare", place / "rows.jsonl", "--base", "pico-encoder", *TWO, "--seeds", 3, "--learning-rate", "sweep:3",
                "--out", place / "run", *SHORT) == 0
    return place / "run"


def test_a_comparison_leaves_everything_it_says(compared: Path) -> None:
    told = json.loads((compared / "comparison.json").read_text())
    assert [a["arm"] for a in told["arms"]] == ["lora-rank-4", "bitfit"] and told["seeds"] == [0, 1, 2]
    assert told["budgets"] == [] and told["references"] == ["majority label"]
    assert all(a["search"]["trainings"] == 3 and len(a["learning_rate"]["trials"]) == 3 for a in told["arms"])
    assert all(a["cost"]["steps"] == 2 and a["cost"]["peak_mb"] > 0 and a["curves"][2]["loss"] for a in told["arms"])
    pair, = [f for f in told["findings"] if f["extra"]["left_arm"] == "lora-rank-4"]
    assert pair["extra"]["estimand"] == "method" and pair["extra"]["seeds"] == 3 and pair["verdict"] in (
        "better", "worse", "no difference", "undecided")
    assert told["recommendation"]["words"] in (compared / "comparison.md").read_text()
    families = json.loads((compared / "families.json").read_text())
    assert set(families) == {"arms by accuracy", "against majority label by accuracy"}
    assert '<svg class="curve pareto"' in (compared / "report.html").read_text()


def test_the_second_call_finds_everything_done(compared: Path, luthier: Luthier) -> None:
    steps = {p: p.stat().st_mtime_ns for p in (compared / "steps").glob("*/step.json")}
    said = luthier("compare", compared.parent / "rows.jsonl", "--base", "pico-encoder", *TWO, "--seeds", 3, "--learning-rate",
                   "sweep:3", "--out", compared, *SHORT, "--json")
    assert said.code == 0, said.err
    assert steps == {p: p.stat().st_mtime_ns for p in (compared / "steps").glob("*/step.json")}
    assert said.json == json.loads((compared / "comparison.json").read_text())


def test_an_arm_has_the_numbers_that_tune_gives(compared: Path, luthier: Luthier) -> None:
    told = json.loads((compared / "comparison.json").read_text())
    rate = told["arms"][1]["learning_rate"]["value"]
    for seed in (0, 2):
        own = [] if seed == 0 else ["--set", f"tuned.seed={seed}", "--set", f"arm-tuned.seed={seed}"]
        said = luthier("tune", compared.parent / "rows.jsonl", "--base", "pico-encoder", "--method", "bitfit", "--set",
                       f"tuned.learning_rate={rate}", *own, "--out", f"tuned-{seed}", *SHORT, "--json")
        value = next(r["value"] for r in said.json["table"] if r["arm"] == "tuned")
        row = next(r for r in told["table"] if r["arm"] == "bitfit")
        assert row["by_seed"][seed] == value


def test_what_is_printed_is_read_without_the_report(luthier: Luthier) -> None:
    rows = write_rows(Path("rows.jsonl"), question_rows(12))
    ranks = ["--method", "lora:rank=1", "--method", "lora:rank=2"]
    said = luthier("compare", rows, "--base", "pico", *ranks, "--learning-rate", "default", *SHORT)
    assert said.code == 0, said.err
    for part in ("2 arms by method on pico", "Cost of one training", "Verdicts (about the right arm)", "Take ",
                 "The verdicts speak of these models", "Report: runs/compare-rows/report.html"):
        assert part in said.out or (part == "Take " and "No arm is best" in said.out), part


@pytest.mark.parametrize("arguments, why", [
    (["--method", "lora"], "alone has nothing to be compared with"), (["--method", "lora", "--method", "lora"], "given twice"),
    (["--method", "lora", "--method", "lroa"], "Did you mean 'lora'"), ([*TWO, "--seeds", "0"], "at least 1 is needed"),
    ([*TWO, "--learning-rate", "fast"], "write sweep"), ([*TWO, "--executor", "ray"], "ray:local"),
])
def test_bad_input_is_refused_before_anything_runs(luthier: Luthier, arguments: list[str], why: str) -> None:
    rows = write_rows(Path("rows.jsonl"), question_rows(12))
    refused(luthier("compare", rows, "--base", "pico", *arguments), why)
    assert not Path("runs").exists()


def test_an_arm_that_finds_nothing_to_train_is_refused_before_another_is_trained(luthier: Luthier) -> None:
    rows = write_rows(Path("rows.jsonl"), question_rows(12))
    refused(luthier("compare", rows, "--base", "pico", *TWO), "Arm 'bitfit': bitfit has nothing to train: pico has no bias")
    assert not Path("runs").exists()


def test_documents_are_no_rows(luthier: Luthier) -> None:
    write_manual(Path("docs"))
    refused(luthier("compare", "docs", "--base", "pico", *TWO), "docs")
