"""The data commands: what each leaves, that they chain into tune, that they resume, and what they refuse."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core.artifact import open_artifact
from luthier.core.errors import UserError
from luthier.pipelines import data, jobs
from luthier.pipelines.inspecting import inspect_data, reading

MANUAL = "# Manual\n\n" + "\n".join(
    f"## The {name}\n\nA {name} is a small part number {n} of the whole instrument.\n" for n, name in enumerate(
        ["peg", "nut", "bridge", "scroll", "tailpiece", "endpin", "purfling", "bassbar", "soundpost", "saddle"]))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path: Path, rows: int = 40) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["q", "a"])
        writer.writerows([f"What is the use of part {n} of {n * 7}?", f"use {n}"] for n in range(rows))
    return str(path)


def make(command: str, path: str, out: str, *steps: str, **rest):
    return data.make(data.plan(command, path, steps, **rest), Path(out))


def test_documents_to_a_divided_set_of_questions_that_tune_reads(here):
    (here / "docs").mkdir()
    (here / "docs" / "a.md").write_text(MANUAL)
    documents, _ = make("ingest", "docs", "passages")
    assert documents.kind == "documents" and data.told(documents)["kept"]["passages"] == 10
    questions, _ = make("synthesize", "passages", "questions", "headings")
    assert questions.subsets == ["all"] and questions.meta["rows"]["all"] >= 10
    curated, _ = make("curate", "questions", "curated", "self-contained:max_words=4")
    assert curated.meta["read"] == questions.meta["rows"]["all"] == curated.meta["rows"]["all"] + curated.meta["dropped"]
    assert {row["by"] for row in curated.ledger()} == {"self-contained"}
    divided, _ = make("split", "questions", "divided")
    assert {"train", "dev", "unseen"} <= set(divided.subsets)
    recipe = jobs.tune("divided")
    assert recipe.text["steps"]["split"] == {"use": "existing", "path": "divided", "kind": "examples"}
    assert "rows" not in recipe.text["steps"]
    assert jobs.tune("questions").text["steps"]["rows"]["use"] == "existing"
    assert sorted(p.name for p in here.iterdir()) == ["curated", "divided", "docs", "passages", "questions"]
    assert inspect_data("divided", "pico", 1, 256)["about"]["rows"] == sum(divided.meta["rows"].values())


def test_rows_are_mapped_read_and_divided(here):
    rows = table(here / "rows.csv")
    made, cached = make("ingest", rows, "rows", sets=["columns={question: q, answer: a}"])
    assert (made.meta["format"], made.meta["rows"], cached) == ("question-answer", {"all": 40}, False)
    again, cached = make("ingest", rows, "rows", sets=["columns={question: q, answer: a}"])
    assert cached and again.identity == made.identity
    divided, _ = make("split", "rows", "divided")
    assert divided.meta["format"] == "question-answer" and sum(divided.meta["rows"].values()) + divided.meta["dropped"] == 40
    assert jobs.tune(rows, sets=["rows.columns={question: q, answer: a}"]).text["steps"]["rows"]["columns"]
    settings = reading(["columns={question: q, answer: a}"])
    assert inspect_data(rows, "pico", 1, 256, **settings)["about"]["format"] == "question-answer"


def test_curation_of_a_divided_set_leaves_the_test_alone(here):
    make("split", _jsonl(here), "divided")
    before = open_artifact(Path("divided"))
    after, _ = make("select", "divided", "chosen", "self-contained:max_words=8")
    assert after.meta["rows"]["train"] < before.meta["rows"]["train"]
    for name in ("dev", "unseen"):
        assert list(after.examples(name)) == list(before.examples(name))


def _jsonl(folder: Path) -> str:
    lines = [json.dumps({"question": f"{' '.join(f'word{n}x{i}' for i in range(6 + n % 2))} of all?", "answer": f"w{n}",
                         "source": f"s{n // 2}"}) for n in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return str(folder / "rows.jsonl")


def test_a_saved_dataset_keeps_its_division(here):
    datasets = pytest.importorskip("datasets")

    def part(numbers):
        return datasets.Dataset.from_list([{"text": f"sentence {n}", "label": n % 2} for n in numbers]).cast_column(
            "label", datasets.ClassLabel(names=["even", "odd"]))

    datasets.DatasetDict(train=part(range(20)), test=part(range(18, 26))).save_to_disk("saved")
    made, _ = make("split", "saved", "divided")
    assert [e.label for e in made.examples("unseen")] == ["even", "odd"] * 4
    assert made.meta["rows"] == {"train": 16, "dev": 2, "unseen": 8} and made.meta["labels"] == ["even", "odd"]
    assert {(r["reason"], r["id"]) for r in made.ledger()} == {("asked in the test", f"train:{n}") for n in (19, 20)}
    steps = jobs.tune("saved").text["steps"]
    assert (steps["rows"]["path"], steps["split"]["use"], steps["arm-base"]["use"]) == ("saved", "own-splits", "majority")
    assert jobs.tune("divided").text["steps"]["tuned"]["tasks"][0]["objective"] == "classify"


def test_tune_refuses_what_no_objective_learns(here):
    for row, name in (({"tokens": ["a"], "tags": ["O"]}, "tagged-tokens"),
                      ({"sentence1": "a", "sentence2": "b", "score": 1}, "pair-score")):
        Path("rows.jsonl").write_text(json.dumps(row))
        for objective in (None, "supervised", "classify"):
            with pytest.raises(UserError, match=f"holds {name} rows, which no objective learns yet"):
                jobs.tune("rows.jsonl", objective=objective)


@pytest.mark.parametrize(("call", "said"), [
    (lambda rows: make("curate", rows, "out"), "Name what is to be done"),
    (lambda rows: make("curate", "nowhere", "out", "distinct"), "There is no file or folder 'nowhere'"),
    (lambda rows: make("synthesize", rows, "out", "headings"), "holds rows; documents are wanted"),
    (lambda rows: make("ingest", rows, "out", "distinct"), "it reads no files"),
    (lambda rows: make("curate", rows, "out", "distnct"), "no data step called 'distnct'"),
    (lambda rows: make("curate", rows, ".", "distinct"), "is not empty and holds no artifact"),
    (lambda rows: make("curate", rows, "out", "distinct", sets=["subset=[x]"]), "no step 'subset'|names no value"),
    (lambda rows: make("curate", rows, "out", "distinct", sets=["subsets=[x]"]), "there is no 'x'"),
    (lambda rows: make("curate", rows, "out", "self-contained:min_words=40"), "No row is left of 40"),
])
def test_refusals(here, call, said):
    with pytest.raises(UserError, match=said):
        call(_jsonl(here))


def test_what_lies_there_is_not_lost(here):
    rows = _jsonl(here)
    make("ingest", rows, "out")
    recipe = data.plan("ingest", rows, sets=["format=question-answer"])
    with pytest.raises(UserError, match="made of other input or settings"):
        data.make(recipe, Path("out"))
    assert data.make(recipe, Path("out"), fresh=True)[1] is False


def test_a_killed_command_goes_on(here, monkeypatch):
    rows = _jsonl(here)
    recipe = data.plan("curate", rows, ["distinct"])
    with monkeypatch.context() as patch:
        patch.setattr("luthier.pipelines.steps.curate.Curate.run", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            data.make(recipe, Path("out"))
    assert not Path("out").exists() and Path(".out.parts/source").exists()
    finished: list[tuple[str, bool]] = []
    from luthier.engine.executor import Watcher

    data.make(recipe, Path("out"), watcher=Watcher(finished=lambda name, seconds, cached: finished.append((name, cached))))
    assert finished == [("source", True), ("curate", False)] and not Path(".out.parts").exists()


MEASURED = """
import resource, sys
from pathlib import Path
import numpy, pyarrow
from luthier.pipelines import data
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data.make(data.plan("ingest", sys.argv[1], sets=["reader={use: read-table, near_rows: 0}"]), Path(sys.argv[2]))
data.make(data.plan("curate", sys.argv[2], ["self-contained:min_words=2"]), Path("kept"))
assert "torch" not in sys.modules
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1000)
"""


@pytest.mark.parametrize("megabytes", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_memory_is_that_of_a_shard(here, megabytes):
    with Path("big.csv").open("w") as file:
        file.write("question,answer,passage\n")
        size = number = 0
        while size < megabytes * 1_000_000:
            size += file.write(f"What is number {number}?,it is {number},{'word ' * 900}{number}\n")
            number += 1
    import luthier

    place = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(luthier.__file__).parents[1]), "HOME": str(here)}
    done = subprocess.run([sys.executable, "-c", MEASURED, "big.csv", "out"], capture_output=True, text=True, check=False,
                          env=place)
    assert done.returncode == 0, done.stderr[-2000:]
    assert open_artifact(Path("kept")).meta["rows"] == {"all": number}
    assert float(done.stdout) < 140, "megabytes beyond the libraries: a shard is 4,096 rows, 18 MB here, in a few forms"


def faq_page(path: Path, names: tuple[str, ...]) -> str:
    asked = [{"@type": "Question", "name": f"What does the {name} do?", "acceptedAnswer": {
        "@type": "Answer", "text": f"<p>The {name} holds part {n} of the instrument in its place.</p>"}}
        for n, name in enumerate(names)]
    path.write_text('<script type="application/ld+json">' + json.dumps({"@type": "FAQPage", "mainEntity": asked}) + "</script>")
    return str(path)


def test_a_faq_page_is_rows_or_documents_and_questions(here):
    names = ("peg", "nut", "bridge", "scroll", "tailpiece", "endpin", "saddle")
    page = faq_page(here / "faq.html", names)
    assert jobs.tune(page).text["steps"]["rows"] == {"use": "read", "path": page}
    rows, _ = make("ingest", page, "rows", "read-faq")
    assert rows.kind == "examples" and rows.meta["format"] == "question-answer" and rows.meta["rows"] == {"all": 7}
    documents, _ = make("ingest", page, "passages")
    assert [p.headings for p in documents.passages()] == [(f"What does the {name} do?",) for name in names]
    questions, _ = make("synthesize", "passages", "questions", "faq")
    assert [e.answer for e in questions.examples("all")] == [e.answer for e in rows.examples("all")]
    assert {e.meta["generator"] for e in questions.examples("all")} == {"faq"}


def test_a_folder_of_parquet_files_is_rows(here):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (here / "shards").mkdir()
    for n in range(2):
        part = [{"question": f"What is the use of part {i} of {i * 7}?", "answer": f"use {i}"}
                for i in range(20 * n, 20 * n + 20)]
        pq.write_table(pa.Table.from_pylist(part), here / "shards" / f"{n}.parquet")
    assert jobs.tune("shards").text["steps"]["rows"] == {"use": "read", "path": "shards"}
    made, _ = make("ingest", "shards", "rows")
    assert made.meta["rows"] == {"all": 40}
    divided, _ = make("split", "shards", "divided")
    assert {"train", "dev", "unseen"} <= set(divided.subsets)
    assert inspect_data("shards", "pico", 1, 256)["about"]["rows"] == 40
