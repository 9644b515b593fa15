"""jobs: the shipped recipes are valid, and what the command line says ends up where it belongs."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.artifact import seal, write_examples
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.core.files import read_json, write_json
from luthier.core.recipe import Recipe, load_recipe, shipped
from luthier.core.run import Run
from luthier.pipelines import jobs
from luthier.pipelines.overrides import override

QA = {"question": "What is a clamp?", "answer": "a rail"}
LABEL = {"text": "a fine film", "label": "good"}
PAIR = {"prompt": "Which glue?", "chosen": "Hide glue.", "rejected": "Any."}
ARMS = ["arm-base", "arm-base-retrieval", "arm-tuned", "arm-tuned-retrieval"]


@pytest.fixture
def file(tmp_path):
    """`file(rows…)`: the path of a file with these rows."""
    def write(*rows: dict[str, Any]) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return str(path)

    return write


def step(recipe: Recipe, name: str) -> Any:
    return next(n.step for n in recipe.nodes if n.name == name)


def wiring(recipe: Recipe, name: str) -> dict[str, str]:
    return next(n.inputs for n in recipe.nodes if n.name == name)


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_recipes_are_valid_and_survive_being_written_out(name):
    recipe = load_recipe(name)
    assert Recipe(recipe.fill()).identity == recipe.identity and recipe.name == name


def test_adapt_reads_the_named_documents_and_keeps_the_rest(tmp_path):
    made = jobs.adapt(["a", "b.md"])
    assert step(made, "documents").paths == ["a", "b.md"]
    whole = load_recipe("adapt").identity
    assert made.edit(**{"documents.paths": ["docs"]}).identity == whole == jobs.adapt([]).identity
    assert "test" not in {n.name for n in made.nodes}


def test_hand_written_questions_are_the_test_of_the_split():
    made = jobs.adapt(["docs"], questions="mine.jsonl")
    assert (step(made, "test").path, step(made, "test").missing_quotes) == ("mine.jsonl", "refuse")
    assert wiring(made, "test") == {"documents": "documents"}
    assert wiring(made, "split") == {**wiring(jobs.adapt(["docs"]), "split"), "test": "test"}
    assert "test" not in jobs.adapt(["docs"]).text["steps"], "the shipped recipe is not changed"


def test_the_demo_is_valid_and_its_pages_and_questions_are_there():
    folder = jobs.demo_folder()
    made = jobs.demo()
    assert step(made, "documents").paths == [str(folder / "pages")] and step(made, "test").missing_quotes == "refuse"
    for name in ("documents", "test", "questions"):
        step(made, name).check()
    assert [n.name for n in made.nodes if n.step.info.name == "evaluate"] == ARMS


def test_the_pico_demo_can_be_run_anywhere():
    made = jobs.demo(pico=True)
    for node in made.nodes:
        node.step.check()
    assert len(step(made, "documents").paths) == jobs.DEMO_PAGES
    assert (step(made, "base").model, step(made, "encoder").model) == ("pico", "pico-encoder")
    assert [s.info.name for s in step(made, "questions").sources] == ["headings"]
    assert step(made, "test").missing_quotes == "drop", "ten pages don't hold every quote"
    assert made.name == "demo pico" and jobs.demo(pico=True).identity == made.identity


def test_the_format_of_the_rows_decides_the_objective(file):
    answers, labels = jobs.tune(file(QA)), jobs.tune(file(LABEL))
    assert [t.objective.info.name for t in step(answers, "tuned").tasks] == ["supervised"]
    assert [t.objective.info.name for t in step(labels, "tuned").tasks] == ["classify"]
    assert step(labels, "arm-base").info.name == "majority" and wiring(labels, "arm-base") == {"examples": "split"}
    assert [m.info.name for m in step(labels, "arm-tuned").metrics] == ["accuracy"]
    assert step(answers, "arm-base").info.name == "evaluate" and step(answers, "rows").path == file(QA)


def test_pairs_of_answers_are_learned_and_judged_as_pairs(file):
    made = jobs.tune(file(PAIR))
    assert [t.objective.info.name for t in step(made, "tuned").tasks] == ["dpo"]
    for arm in ("arm-base", "arm-tuned"):
        assert [m.info.name for m in step(made, arm).metrics] == ["preference-accuracy"]
    assert step(made, "arm-base").shots == (0,) and step(made, "comparison").metrics == ("preference-accuracy",)
    chosen = jobs.tune(file(PAIR), objective="supervised")
    assert [t.objective.info.name for t in step(chosen, "tuned").tasks] == ["supervised"]


def test_a_named_objective_is_taken(file):
    assert step(jobs.tune(file(QA), objective="classify"), "arm-base").info.name == "majority"
    named = jobs.tune(file(LABEL), objective="supervised")
    assert [t.objective.info.name for t in step(named, "tuned").tasks] == ["supervised"]
    with pytest.raises(UserError, match="Did you mean 'supervised'"):
        jobs.tune(file(QA), objective="supervise")


def test_bad_rows_are_refused_before_there_is_a_recipe(file):
    with pytest.raises(UserError, match="row 2|line 2"):
        jobs.tune(file(QA, {"question": "Who?"}))


# --- overrides -------------------------------------------------------------------------------------------------------


def test_base_seed_and_values_are_set():
    made = override(jobs.adapt([]), base="pico", seed=7, sets=[
        "tuned.length={epochs: 2}", " split.dev_share = 0.3 ", "arm-base.shots=[0, 1]"])
    assert (step(made, "base").model, made.seed) == ("pico", 7)
    assert step(made, "tuned").length.epochs == 2 and step(made, "split").dev_share == 0.3
    assert step(made, "arm-base").shots == (0, 1)


def test_nothing_said_changes_nothing():
    recipe = jobs.adapt([])
    assert override(recipe) is recipe
    assert override(recipe, parts={"method": []}) is recipe


@pytest.mark.parametrize(("kind", "specs", "where"), [
    ("method", ["bitfit"], {"tuned": "method"}),
    ("optimizer", ["adamw"], {"tuned": "optimizer"}),
    ("schedule", ["constant"], {"tuned": "schedule"}),
    ("decoder", ["sample"], dict.fromkeys(ARMS, "decoder")),
    ("retriever", ["hybrid:depth=9"], {"index": "retriever"}),
])
def test_a_part_is_placed_in_every_step_that_takes_it(kind, specs, where):
    made = override(jobs.adapt([]), parts={kind: specs})
    for name, field in where.items():
        assert getattr(step(made, name), field).info.name == specs[0].partition(":")[0]
    plain = jobs.adapt([])
    assert all(step(made, n.name) == n.step for n in plain.nodes if n.name not in where)


def test_several_parts_where_several_are_read():
    made = override(jobs.adapt([]), parts={"metric": ["f1", "recall:k=3"], "data_step": ["headings"]})
    for name in ARMS:
        found = step(made, name).metrics
        assert [m.info.name for m in found] == ["f1", "recall"] and found[1].k == 3
    assert [s.info.name for s in step(made, "questions").sources] == ["headings"]
    with pytest.raises(UserError, match="--method was given 2 times.*with its own --out"):
        override(jobs.adapt([]), parts={"method": ["lora", "bitfit"]})


@pytest.mark.parametrize(("said", "why"), [
    ({"parts": {"method": ["lorra"]}}, "^There is no method called 'lorra'. Did you mean 'lora'"),
    ({"parts": {"method": ["lora:rnk=4"]}}, "has no 'rnk'. Did you mean 'rank'"),
    ({"parts": {"method": ["lora:rank=0"]}}, "rank = 0"),
    ({"sets": ["tuned.lenght={epochs: 2}"]}, "step 'tuned' has no 'lenght'. Did you mean 'length'"),
    ({"sets": ["tund.length={epochs: 2}"]}, "no step 'tund'. Did you mean 'tuned'"),
    ({"sets": ["tuned.length"]}, "is not path=value"),
    ({"sets": ["tuned.length={epochs: 2"]}, "the value is not YAML"),
    ({"base": "pico", "sets": ["seed=much"]}, "seed = 'much' is not a whole number"),
])
def test_what_does_not_exist_is_refused_with_the_nearest(said, why):
    with pytest.raises(UserError, match=why):
        override(jobs.adapt([]), **said)


def test_a_part_that_no_step_takes_is_refused(file):
    with pytest.raises(UserError, match="no step that takes a retriever"):
        override(jobs.tune(file(QA)), parts={"retriever": ["hybrid"]})
    with pytest.raises(UserError, match="no step that takes a data-step"):
        override(jobs.tune(file(QA)), parts={"data_step": ["headings"]})


# --- running ---------------------------------------------------------------------------------------------------------

TWO = {"steps": {"rows": {"use": "read", "path": "none.jsonl"}, "base": {"use": "base", "model": "picco"}}}


def test_all_problems_are_said_before_anything_starts(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError) as caught:
        jobs.run(Recipe(TWO), tmp_path / "out")
    said = str(caught.value).splitlines()
    assert len(said) == 3 and "is a file" in said[0] and "none.jsonl" in said[1] and "Did you mean 'pico'" in said[2]


def test_a_run_within_its_documents_is_refused(tmp_path):
    (tmp_path / "a.md").write_text("# A\n\nText.\n")
    recipe = Recipe({"steps": {"documents": {"use": "ingest", "paths": [str(tmp_path)]}}})
    with pytest.raises(UserError, match="lies within the documents"):
        jobs.run(recipe, tmp_path / "runs" / "one")
    assert not (tmp_path / "runs").exists()


def test_a_run_is_executed_and_reported(tmp_path, file):
    seen: list[Run] = []
    made = jobs.run(Recipe({"steps": {"rows": {"use": "read", "path": file(QA)}}}), tmp_path / "run", exact=True,
                    report=lambda run: seen.append(run) or tmp_path)
    assert made.has("rows") and made.record["state"] == "finished" and seen == [made]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   RuntimeError("IO failed: No space left on device (os error 28)")])
def test_a_full_disk_is_told_as_such(tmp_path, file, error):
    def full(run: Run) -> Path:
        raise error

    recipe = Recipe({"steps": {"rows": {"use": "read", "path": file(QA)}}})
    with pytest.raises(UserError, match="No space left on device. What is finished is kept"):
        jobs.run(recipe, tmp_path / "run", exact=True, report=full)


def test_other_errors_stay_what_they_are(tmp_path, file):
    def broken(run: Run) -> Path:
        raise OSError(errno.EIO, "Input/output error")

    recipe = Recipe({"steps": {"rows": {"use": "read", "path": file(QA)}}})
    with pytest.raises(OSError, match="Input/output"):
        jobs.run(recipe, tmp_path / "run", exact=True, report=broken)


# --- further rows ----------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path) -> Run:
    """The folders of a run that tuned a packaged base."""
    folder = tmp_path / "run"
    write_json(folder / "run.json", {"seed": 5})
    for name, kind in (("base", "model"), ("tuned", "adapter")):
        (folder / "steps" / name / "licenses").mkdir(parents=True)
        (folder / "steps" / name / "licenses" / "TERMS.txt").write_text("terms")
        seal(kind, folder / "steps" / name, name="pico", path="/models/pico")
    write_examples(folder / "steps" / "split", {"train": [question("t", "Who?", "I")], "dev": []})
    return Run(folder)


def test_further_rows_are_scored_by_base_and_tuned_model(finished, file):
    made = jobs.evaluate(finished, file(QA))
    assert (made.seed, step(made, "base").model, step(made, "tuned").kind) == (5, "pico", "adapter")
    assert wiring(made, "arm-tuned") == {"base": "base", "tuned": "tuned", "examples": "test"}
    assert wiring(made, "test") == {"rows": "rows", "trained": "trained"}
    assert {step(made, a).sets for a in ("arm-base", "arm-tuned")} == {("test",)}
    for name in ("trained", "tuned"):
        step(made, name).check()


def test_further_rows_with_labels_are_compared_with_the_majority(finished, file):
    with pytest.raises(UserError, match="holds text-label rows; the model of .* was tuned on question-answer"):
        jobs.evaluate(finished, file(LABEL))
    record = finished.folder / "steps" / "tuned" / "luthier.json"
    write_json(record, {**read_json(record), "heads": {"classify": {"use": "linear"}}})
    made = jobs.evaluate(finished, file(LABEL))
    assert step(made, "arm-base").info.name == "majority"
    assert [m.info.name for m in step(made, "arm-tuned").metrics] == ["accuracy"]


def test_a_base_of_ones_own_is_found_by_its_folder(finished, file):
    write_json(finished.folder / "steps" / "base" / "luthier.json",
               {"kind": "model", "identity": "i", "name": "mine", "path": "/models/mine"})
    assert step(jobs.evaluate(finished, file(QA)), "base").model == "/models/mine"


def test_what_a_data_command_left_is_scored_set_by_set(finished, tmp_path, make_ctx):
    from luthier.core.artifact import open_artifact

    parts = {name: [question(f"{name}/1", f"What of {name}?", "this")] for name in
             ("train", "dev", "validation", "known", "unseen", "unanswerable")}
    write_examples(tmp_path / "divided", parts)
    made = jobs.evaluate(finished, str(tmp_path / "divided"))
    assert (step(made, "rows").path, step(made, "rows").kind) == (str(tmp_path / "divided"), "examples")
    assert {step(made, n).sets for n in ("test", "arm-base", "arm-tuned")} == {("known", "unanswerable", "unseen")}
    inputs = {"rows": open_artifact(tmp_path / "divided"), "trained": finished.step("split")}
    test, ctx = step(made, "test"), make_ctx("test", inputs)
    left = test.run(inputs, ctx)
    assert {n: [e.id for e in left.examples(n)] for n in left.subsets} == {
        "train": ["t"], "dev": [], "known": ["known/1"], "unseen": ["unseen/1"], "unanswerable": ["unanswerable/1"]}
    assert [r.verdict for r in test.receipts(inputs, left, ctx)] == ["agrees"]
    write_examples(tmp_path / "whole", {"all": parts["known"]})
    assert step(jobs.evaluate(finished, str(tmp_path / "whole")), "test").sets == ()


def test_rows_that_are_all_there_to_be_learned_and_documents_are_not_scored(finished, tmp_path):
    write_examples(tmp_path / "learned", {"train": [question("a", "What?", "this")], "dev": []})
    with pytest.raises(UserError, match="learned comes divided into dev, train: none of it is there to be tested on"):
        jobs.evaluate(finished, str(tmp_path / "learned"))
    seal("documents", tmp_path / "documents")
    with pytest.raises(UserError, match="an artifact of the kind 'documents'; wanted: examples"):
        jobs.evaluate(finished, str(tmp_path / "documents"))
    write_examples(tmp_path / "again", {"unseen": [question("a", "who? ", "me")]})
    made = jobs.evaluate(finished, str(tmp_path / "again"))
    from luthier.core.artifact import open_artifact

    with pytest.raises(UserError, match="1 of 1 rows were trained on; first: a is t of the training rows"):
        step(made, "test").run({"rows": open_artifact(tmp_path / "again"), "trained": finished.step("split")}, None)


def test_a_run_without_a_tuned_model_is_refused(tmp_path, file):
    write_json(tmp_path / "run" / "run.json", {"seed": 5})
    with pytest.raises(UserError, match="has no tuned model. Finish it first"):
        jobs.evaluate(Run(tmp_path / "run"), file(QA))


# --- several files -------------------------------------------------------------------------------------------------

@pytest.fixture
def files(tmp_path):
    def write(**files: list[dict[str, Any]]) -> list[str]:
        for name, rows in files.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        return [str(tmp_path / f"{name}.jsonl") for name in files]

    return write


def test_several_files_are_one_set_of_rows_or_a_mixture(files):
    a, b = files(a=[QA], b=[{**QA, "question": "What is a glue?"}])
    plain = jobs.tune([a, b])
    assert step(plain, "rows").path == a and step(plain, "rows").also == (b,)
    assert step(plain, "tuned").tasks[0].data == "examples.train"
    mixed = jobs.tune([f"{a}=3", b])
    assert step(mixed, "tuned").tasks[0].data == {"examples.train:a.jsonl": 3, "examples.train:b.jsonl": 1}
    assert step(mixed, "rows").also == (b,)


@pytest.mark.parametrize("named, why", [
    (["a.jsonl=three"], "'three' is not a weight"),
    (["a.jsonl=0"], "greater than 0"),
    (["a.jsonl", "a.jsonl"], "named twice"),
    (["a.jsonl", "other/a.jsonl"], "Two of the files are called a.jsonl"),
    (["a.jsonl", "c.jsonl"], "c.jsonl holds text-label rows, .*a.jsonl question-answer rows"),
    (["a.jsonl", "gone.jsonl"], "gone.jsonl does not exist"),
])
def test_files_that_can_not_be_read_together_are_refused(tmp_path, files, named, why):
    files(a=[QA], c=[LABEL])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.jsonl").write_text(json.dumps(QA) + "\n")
    with pytest.raises(UserError, match=why):
        jobs.tune([str(tmp_path / name) for name in named])


def test_rows_of_several_files_say_where_they_are_from(files, make_ctx):
    from luthier.pipelines.steps.read import Read

    a, b = files(a=[QA, {**QA, "question": "What is a glue?"}], b=[{**QA, "question": "What is a saw?"}])
    read, ctx = Read(path=a, also=(b,)), make_ctx("read")
    artifact = read.run({}, ctx)
    assert [(e.id, e.meta["file"]) for e in artifact.examples("all")] == [
        ("a.jsonl:1", "a.jsonl"), ("a.jsonl:2", "a.jsonl"), ("b.jsonl:1", "b.jsonl")]
    assert [r.verdict for r in read.receipts({}, artifact, ctx)] == ["agrees"]
    assert set(read.content()) == {"a.jsonl", "b.jsonl"}
    twice = files(a=[{**QA, "id": "x"}], b=[{**QA, "id": "x"}])
    with pytest.raises(UserError, match=r"id 'x' is in a\.jsonl and in b\.jsonl"):
        Read(path=twice[0], also=(twice[1],)).run({}, make_ctx("twice"))
