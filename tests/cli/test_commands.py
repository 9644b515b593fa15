"""Every command does what its help says, on models with random weights."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import (
    QUICK,
    SHORT,
    SOURCE,
    Luthier,
    completion_rows,
    label_rows,
    lines,
    question_rows,
    refused,
    step_files,
    write_manual,
    write_rows,
)

HEAVY = ("torch", "transformers", "peft", "lancedb", "pyarrow")


# --- looking up --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["list", "method"], ["schema"], ["catalog"],
                                       ["schema", "method", "lora"], ["catalog", "lora"], ["tune", "--help"]])
def test_looking_up_imports_no_library_for_models(arguments: list[str]) -> None:
    program = (f"import sys; sys.path.insert(0, {SOURCE!r}); from luthier.cli.main import main; code = main({arguments!r}); "
               f"print(code, [n for n in {HEAVY!r} if n in sys.modules])")
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "0 []"


def test_list_names_every_kind_and_component(luthier: Luthier) -> None:
    everything = luthier("list", "--json").json
    assert {"method", "objective", "metric", "data_step", "step"} <= {row["kind"] for row in everything}
    shown = luthier("list").out
    assert all(f"  {row['name']} " in shown for row in everything)
    methods = luthier("list", "method", "--json").json
    assert {row["kind"] for row in methods} == {"method"}
    assert "lora" in {row["name"] for row in methods}
    assert "rank" in luthier("list", "method").out, "one kind is shown with its keys"
    assert luthier("list", "data-step").out == luthier("list", "data_step").out


def test_list_takes_a_kind_in_the_plural(luthier: Luthier) -> None:
    assert luthier("list", "methods").out == luthier("list", "method").out
    assert luthier("list", "data-steps").out == luthier("list", "data-step").out


def test_list_base_names_the_packaged_models_and_their_terms(luthier: Luthier) -> None:
    shown = luthier("list", "base").out
    assert "pico" in shown and "--accept-terms gemma" in shown and "hub id" in shown
    assert {"pico", "minilm"} <= {row["name"] for row in luthier("list", "base", "--json").json}


def test_results_are_printed_by_set_and_metric() -> None:
    from luthier.cli._shared import _table

    row = {"set": "unseen", "metric": "f1", "arm": "base", "value": 0.25, "low": None, "high": None, "questions": 8,
           "clusters": 8}
    other = {**row, "arm": "tuned", "value": 0.5, "low": 0.25, "high": 0.75}
    assert _table([row, other, {**row, "metric": "stops"}], "cluster") == [
        "unseen: f1 (8 questions, 8 clusters)", "  base   0.250", "  tuned  0.500  [0.250, 0.750]"]
    assert _table([], "section") == []


def test_schema_describes_recipes_and_components(luthier: Luthier) -> None:
    recipes = luthier("schema").json
    assert {"steps", "seed"} <= recipes["properties"].keys()
    lora = luthier("schema", "method", "lora").json
    assert lora["properties"]["rank"]["default"] == 8


def test_catalog_holds_210_techniques(luthier: Luthier) -> None:
    rows = luthier("catalog", "--json").json
    assert [row["id"] for row in rows] == list(range(1, 211))
    assert "210 techniques" in luthier("catalog").out
    one = luthier("catalog", "lora", "--json").json
    assert one["slug"] == "lora" and one["status"] in ("-", "runs", "verified", "studied", "stale", "underpowered")
    assert luthier("catalog", str(one["id"]), "--json").json == one
    assert "oracles:" in luthier("catalog", "lora").out


def test_a_reader_that_goes_away_is_no_error() -> None:
    said = subprocess.run(f"PYTHONPATH={SOURCE} {sys.executable} -m luthier.cli.main catalog | head -1",
                          shell=True, capture_output=True, text=True, check=True)
    assert len(said.stdout.splitlines()) == 1
    assert said.stderr == ""


# --- tune --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("rows", "base", "arms", "metrics"), [
    (completion_rows(), "pico", {"base", "tuned"}, {"exact-match", "f1", "stops"}),
    (question_rows(), "pico-encoder-decoder", {"base", "tuned"}, {"exact-match", "f1", "stops"})])
def test_tune_reads_each_format(luthier: Luthier, rows: list, base: str, arms: set[str], metrics: set[str]) -> None:
    data = write_rows(Path("rows.jsonl"), rows)
    result = luthier("tune", data, "--base", base, "--out", "run", "--exact", "--json", *SHORT)
    assert result.code == 0, result.err
    table = result.json["table"]
    assert {row["arm"] for row in table} == arms
    assert {row["metric"] for row in table} == metrics
    assert Path(result.json["report"]).stat().st_size > 10_000


def test_tune_on_questions_leaves_what_it_says(answers_run: Path) -> None:
    table = json.loads((answers_run / "steps/comparison/table.json").read_text())
    assert {row["arm"] for row in table} == {"base", "tuned"}
    assert (answers_run / "report.html").exists()
    assert list((answers_run / "steps/tuned/licenses").iterdir()), "the base's licence travels along"
    record = json.loads((answers_run / "run.json").read_text())
    assert record["state"] == "finished"


def test_tune_on_labels_compares_with_the_commonest_label(labels_run: Path) -> None:
    table = json.loads((labels_run / "steps/comparison/table.json").read_text())
    assert {row["arm"] for row in table} == {"majority label", "tuned"}
    answers = lines(labels_run / "steps/arm-tuned/predictions.jsonl")
    assert {row["text"] for row in answers} <= {"even", "odd"}
    assert all(abs(sum(row["probabilities"].values()) - 1) < 1e-5 for row in answers)


def test_tune_on_labels_with_a_language_model(luthier: Luthier) -> None:
    data = write_rows(Path("rows.jsonl"), label_rows())
    result = luthier("tune", data, "--base", "pico", "--out", "run", "--exact", "--json", *SHORT)
    assert result.code == 0, result.err
    assert {row["metric"] for row in result.json["table"]} == {"accuracy"}


def test_parts_and_edits_reach_the_recipe(luthier: Luthier) -> None:
    data = write_rows(Path("rows.jsonl"), question_rows())
    said = luthier("tune", data, "--base", "pico", "--out", "run", "--exact", "--seed", "5", "--method", "lora:rank=2",
                   "--decoder", "greedy:max_new_tokens=4", "--metric", "f1", "--set", "tuned.length={steps: 2}",
                   "--set", "tuned.learning_rate=0.01")
    assert said.code == 0, said.err
    recipe = yaml.safe_load(Path("run/recipe.yaml").read_text())
    tuned = recipe["steps"]["tuned"]
    assert recipe["seed"] == 5
    assert tuned["method"]["rank"] == 2
    assert tuned["learning_rate"] == 0.01
    assert len(lines(Path("run/steps/tuned/curve.jsonl"))) == 2
    assert all(row["tokens"] <= 4 for row in lines(Path("run/steps/arm-tuned/predictions.jsonl")))
    assert {row["metric"] for row in lines(Path("run/steps/arm-tuned/scores.jsonl"))} == {"f1"}


def test_the_recipe_of_a_run_is_a_recipe(luthier: Luthier, answers_run: Path) -> None:
    written = yaml.safe_load((answers_run / "recipe.yaml").read_text())
    Path("mine.yaml").write_text(yaml.safe_dump(written))
    data = answers_run.parent / "rows.jsonl"
    shutil.copytree(answers_run, "run")
    before = step_files(Path("run"))
    said = luthier("tune", data, "--recipe", "mine.yaml", "--out", "run", "--exact")
    assert said.code == 0, said.err
    assert step_files(Path("run")) == before, "it is the same recipe, hence the same run"


def test_the_same_command_answers_from_the_run(luthier: Luthier, answers_run: Path) -> None:
    shutil.copytree(answers_run, "run", copy_function=shutil.copy2)
    before = step_files(Path("run"))
    command = ["tune", answers_run.parent / "rows.jsonl", "--base", "pico", "--out", "run", "--exact", *SHORT]
    said = luthier(*command)
    assert said.code == 0
    assert f"{len(list(Path('run/steps').iterdir()))} steps already done" in said.err and "[1/" not in said.err
    assert step_files(Path("run")) == before
    assert luthier(*command, "--fresh").code == 0
    assert not step_files(Path("run")).items() & before.items()


def test_changed_rows_are_read_again(luthier: Luthier) -> None:
    data = write_rows(Path("rows.jsonl"), question_rows())
    command = ["tune", data, "--base", "pico", "--out", "run", "--exact", *SHORT]
    assert luthier(*command).code == 0
    before = step_files(Path("run"))
    write_rows(data, question_rows(25))
    assert luthier(*command).code == 0
    same = {name for name, file in step_files(Path("run")).items() if before[name] == file}
    assert same == {"base"}


# --- evaluate ----------------------------------------------------------------------------------------------------

def test_evaluate_scores_new_rows(luthier: Luthier, answers_run: Path) -> None:
    data = write_rows(Path("new.jsonl"), question_rows(6, start=100))
    result = luthier("evaluate", answers_run, data, "--out", "scores", "--exact", "--json")
    assert result.code == 0, result.err
    assert {row["arm"] for row in result.json["table"]} == {"base", "tuned"}
    assert {row["questions"] for row in result.json["table"]} == {6}


def test_evaluate_scores_new_labels(luthier: Luthier, labels_run: Path) -> None:
    data = write_rows(Path("new.jsonl"), label_rows(6, start=100))
    result = luthier("evaluate", labels_run, data, "--out", "scores", "--exact", "--json")
    assert result.code == 0, result.err
    assert {(row["arm"], row["metric"]) for row in result.json["table"]} == {
        ("majority label", "accuracy"), ("tuned", "accuracy")}


def test_evaluate_scores_what_a_data_command_left(luthier: Luthier, answers_run: Path) -> None:
    write_rows(Path("new.jsonl"), question_rows(20, start=100))
    assert luthier("data", "split", "new.jsonl", "--out", "divided").code == 0
    result = luthier("evaluate", answers_run, "divided", "--out", "scores", "--exact", "--json")
    assert result.code == 0, result.err
    asked = len(lines(Path("scores/steps/arm-tuned/predictions.jsonl")))
    assert {(row["set"], row["questions"]) for row in result.json["table"]} == {("unseen", asked)} and 1 < asked < 20


def test_rows_that_were_trained_on_are_refused(luthier: Luthier, answers_run: Path) -> None:
    trained = {row["question"] for row in question_rows()} - {
        row["question"] for row in lines(answers_run / "steps/arm-tuned/predictions.jsonl")}
    leaked = {**question_rows(1)[0], "question": f"  {min(trained).upper()} "}
    data = write_rows(Path("new.jsonl"), [*question_rows(6, start=100), leaked])
    said = luthier("evaluate", answers_run, data, "--out", "scores", "--exact")
    refused(said, "1 of 7 rows were trained on", "new.jsonl:7", "take them out")
    write_rows(data, question_rows(6, start=100))
    assert luthier("evaluate", answers_run, data, "--out", "scores", "--exact").code == 0, "the mended file goes on"


# --- adapt and ask -----------------------------------------------------------------------------------------------

def test_adapt_leaves_four_arms_and_a_report(manual_run: Path) -> None:
    table = json.loads((manual_run / "steps/comparison/table.json").read_text())
    assert {row["arm"] for row in table} == {"base", "base+retrieval", "tuned", "tuned+retrieval"}
    findings = [row for path in manual_run.glob("steps/*/receipts.jsonl") for row in lines(path)]
    assert len(findings) > 10
    assert {row["verdict"] for row in findings} <= {"agrees", "not applicable"}
    assert "<html" in (manual_run / "report.html").read_text(encoding="utf-8")


def test_ask_answers_and_cites(luthier: Luthier, manual_run: Path) -> None:
    asked = "What is a scraper?"
    answer: dict[str, Any] = luthier("ask", manual_run, asked, "--json", "--passages", "3",
                                     "--decoder", "greedy:max_new_tokens=4").json
    assert answer["question"] == asked
    assert answer["arm"] == "tuned+retrieval"
    assert len(answer["passages"]) == 3
    assert any("A scraper is a thin sheet" in passage["excerpt"] for passage in answer["passages"])
    shown = luthier("ask", manual_run, asked, "--decoder", "greedy:max_new_tokens=4")
    assert re.search(r"\[1\] planes\.md, line \d+: Planes", shown.out)
    alone = luthier("ask", manual_run, asked, "--arm", "base", "--json", "--decoder", "greedy:max_new_tokens=4").json
    assert alone["passages"] == []


def test_asking_changes_nothing(luthier: Luthier, manual_run: Path) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in manual_run.rglob("*"))
    assert luthier("ask", manual_run, "What is a frog?", "--decoder", "greedy:max_new_tokens=4").code == 0
    assert sorted((p, p.stat().st_mtime_ns) for p in manual_run.rglob("*")) == before


# --- data --------------------------------------------------------------------------------------------------------

def test_inspect_shows_what_is_learned(luthier: Luthier) -> None:
    data = write_rows(Path("rows.jsonl"), question_rows())
    found = luthier("data", "inspect", data, "--base", "pico", "--rows", "2", "--json").json
    assert found["about"]["format"] == "question-answer"
    assert found["about"]["rows"] == 24
    first, _ = found["shown"]
    learned = "".join(s["text"] for s in first["segments"] if s["learned"])
    assert question_rows()[0]["answer"] in learned
    assert question_rows()[0]["question"] not in learned
    assert first["learned"] < first["tokens"]
    shown = luthier("data", "inspect", data, "--base", "pico").out
    assert "⟦" in shown and "between ⟦ and ⟧" in shown


def test_inspect_counts_labels(luthier: Luthier) -> None:
    data = write_rows(Path("rows.jsonl"), label_rows())
    found = luthier("data", "inspect", data, "--base", "pico-encoder", "--json").json
    assert found["about"]["labels"] == {"even": 12, "odd": 12}
    assert "-> label: even" in luthier("data", "inspect", data, "--base", "pico-encoder").out


def test_inspect_shows_documents(luthier: Luthier, manual: Path) -> None:
    words = luthier("data", "inspect", manual, "--json").json["about"]
    tokens = luthier("data", "inspect", manual, "--base", "pico", "--json").json["about"]
    assert words["documents"] == 8
    assert words["sections"] == 16
    assert (words["counted by"], tokens["counted by"]) == ("words and signs", "pico")
    assert words["tokens"] != tokens["tokens"]
    refused(luthier("data", "inspect", manual, "--base", "pic"), "no base 'pic'", "Did you mean 'pico'?")


# --- a place of one's own ----------------------------------------------------------------------------------------

def test_nothing_is_left_outside_of_runs(luthier: Luthier) -> None:
    ignored = Path(__file__).parents[2] / ".gitignore"
    if not ignored.exists():
        pytest.skip("not a checkout")
    shutil.copy(ignored, ".gitignore")
    data = write_rows(Path("rows.jsonl"), question_rows())
    for arguments in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *arguments], check=True)
    assert luthier("tune", data, "--base", "pico", "--exact", *SHORT).code == 0
    assert Path("runs/rows/report.html").exists()
    status = subprocess.run(["git", "status", "--porcelain"], check=True, capture_output=True, text=True).stdout
    assert [line for line in status.splitlines() if not line.startswith("A ")] == []


@pytest.mark.slow
def test_the_pico_demo_runs_to_its_report(luthier: Luthier) -> None:
    result = luthier("adapt", "--demo", "--pico", "--json")
    assert result.code == 0, result.err
    assert {row["set"] for row in result.json["table"]} == {"known", "unseen", "unanswerable"}
    assert Path("runs/demo-pico/report.html").exists()


def test_an_unfinished_run_says_how_to_finish_it(luthier: Luthier, manual_run: Path, tmp_path: Path) -> None:
    write_manual(tmp_path / "docs")
    refused(luthier("adapt", tmp_path / "docs", "--out", "run", *QUICK, "--method", "bitfit"), "bitfit")
    refused(luthier("evaluate", "run", "rows.jsonl"), "no tuned model", "run its command again")
