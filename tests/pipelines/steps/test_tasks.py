"""A manifest of tasks: rows by type, what is wrong with it by name, test rows that are in a task, and the recipe over it."""

from __future__ import annotations

import json

import pytest

from luthier.core.artifact import write_examples
from luthier.core.errors import UserError
from luthier.core.recipe import load_recipe
from luthier.pipelines import jobs
from luthier.pipelines.overrides import override
from luthier.pipelines.steps.tasks import Tasks

WORDS = "module class object list dict name scope block import yield".split()


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    """A manifest of five tasks, one of each type, and their files."""
    lines(tmp_path / "topics.jsonl", [{"text": f"a {WORDS[n % 10]} {n}", "label": n % 3} for n in range(24)])
    lines(tmp_path / "why.jsonl", [{"q": f"Which is it {n}?", "options": [WORDS[(n + i) % 10] for i in range(2 + n % 3)],
                                    "answer": 0} for n in range(20)])
    lines(tmp_path / "where.jsonl", [{"context": f"There is a {WORDS[n % 10]} of {n}.", "question": f"What is of {n}?",
                                      "answers": {"text": [WORDS[n % 10]], "answer_start": [11]}} for n in range(20)])
    lines(tmp_path / "say.jsonl", [{"prompt": f"Say {WORDS[n % 10]}", "completion": WORDS[n % 10]} for n in range(20)])
    lines(tmp_path / "rate.jsonl", [{"text": f"a {WORDS[n % 10]}", "label": n / 10} for n in range(20)])
    (tmp_path / "tasks.yaml").write_text("""\
- {name: topics, type: cls, train: topics.jsonl, num_labels: 3}
- {name: why, type: mc, train: why.jsonl, fields: {question: q}}
- {name: where, type: span, train: where.jsonl}
- {name: rate, type: number, train: rate.jsonl}
""")
    return tmp_path


def manifest(folder, text: str) -> Tasks:
    (folder / "other.yaml").write_text(text)
    return Tasks(path=str(folder / "other.yaml"))


def test_tasks_are_read_by_their_types(folder, make_ctx):
    step = Tasks(path=str(folder / "tasks.yaml"))
    step.check()
    ctx = make_ctx("tasks")
    found = step.run({}, ctx)
    assert sorted(found.subsets) == ["rate", "topics", "where", "why"]
    assert {n: (t["type"], t["rows"]) for n, t in found.meta["tasks"].items()} == {
        "topics": ("cls", 24), "why": ("mc", 20), "where": ("span", 20), "rate": ("number", 20)}
    assert found.meta["tasks"]["why"]["options"] == 4 and found.meta["tasks"]["topics"]["labels"] == 3
    assert [f.verdict for f in step.receipts({}, found, ctx)] == ["agrees"]
    before = step.content()
    lines(folder / "rate.jsonl", [{"text": "other", "label": 1.0}])
    assert step.content() != before, "a changed file is another manifest"
    written = manifest(folder, "tasks:\n- {name: say, type: s2s, train: say.jsonl}\n").run({}, make_ctx("written"))
    assert written.meta["tasks"]["say"]["format"] == "prompt-completion"


@pytest.mark.parametrize("text, says", [
    ("- {name: a, type: cls, train: topics.jsonl, num_labels: 1}",
     r"task 1 \(a\): num_labels = 1, and log 1 = 0 .* type: number"),
    ("- {name: a, type: cls, train: topics.jsonl}\n- {name: a, type: mc, train: why.jsonl, fields: {question: q}}",
     "two tasks are called 'a'"),
    ("- {name: a, type: cls, train: nowhere.jsonl}", "Task 'a': path: .*nowhere.jsonl does not exist"),
    ("- {name: a, type: mrc, train: topics.jsonl}", r"task 1 \(a\): type = 'mrc': Input should be 'cls', 'mc'"),
    ("- {name: a, type: cls, train: topics.jsonl, labels: 3}",
     "labels = 3: .*legal keys: name, type, train, fields, num_labels"),
    ("- {name: a, type: cls, train: why.jsonl, fields: {question: q}}",
     r"Task 'a' \(type: cls\) has multiple-choice rows; cls reads text-label, pair-label. Rows like these are type: mc"),
    ("- {name: a, type: number, train: rate.jsonl, num_labels: 4}", "num_labels = 4 is for type: cls; this is number"),
    ("- {name: a.b, type: cls, train: topics.jsonl}", "name = 'a.b'"),
    ("name: a", "holds no list of tasks"), ("- [1", "is not YAML"), ("[]", "holds no list of tasks"),
])
def test_what_is_wrong_with_a_manifest_is_named(folder, text, says):
    with pytest.raises(UserError, match=says):
        manifest(folder, text).check()


def test_labels_out_of_range_name_task_and_row(folder, make_ctx):
    with pytest.raises(UserError, match=r"Task 'a', row .*3: label = '2' is out of range; legal with num_labels = 2: 0 to 1"):
        manifest(folder, "- {name: a, type: cls, train: topics.jsonl, num_labels: 2}").run({}, make_ctx("a"))
    lines(folder / "named.jsonl", [{"text": f"t{n}", "label": "red blue red green".split()[n]} for n in range(4)])
    with pytest.raises(UserError, match=r"row .*4: label = 'green' is out of range; legal with num_labels = 2: red, blue"):
        manifest(folder, "- {name: a, type: cls, train: named.jsonl, num_labels: 2}").run({}, make_ctx("b"))
    lines(folder / "same.jsonl", [{"text": f"t{n}", "label": "red"} for n in range(4)])
    with pytest.raises(UserError, match=r"Task 'a' has 1 label\(s\)"):
        manifest(folder, "- {name: a, type: cls, train: same.jsonl}").run({}, make_ctx("c"))


def test_test_rows_of_the_target_in_a_task_are_told(folder, make_ctx):
    step, said = Tasks(path=str(folder / "tasks.yaml")), []
    rows = list(step.run({}, make_ctx("own")).examples("topics"))
    target = write_examples(make_ctx("target").folder, {"train": rows[:4], "unseen": rows[4:7]})
    found = step.run({"target": target}, make_ctx("tasks", log=said.append))
    assert found.meta["tasks"]["topics"]["contaminated"] == 3 and "contaminated" not in found.meta["tasks"]["rate"]
    assert "contamination: task 'topics' holds 3 of the target's test rows" in said[0] and rows[4].id in said[0]


def test_the_recipe_trains_all_tasks_and_leaves_a_model_without_heads(folder):
    made = jobs.tune(str(folder / "tasks.yaml"), recipe="muppet")
    made = override(made, base="pico-encoder", parts={"regularizer": ["r3f:where=labels,lam=0.2"]},
                         sets=["tuned.batch_rows=4", "tuned.length={steps: 3}", "tuned.accumulate=5"])
    run = jobs.run(made, folder / "run", exact=True)
    assert set(run.step("tuned").meta["rows"]) == {f"manifest.{n}" for n in ("topics", "why", "where", "rate")}
    body = run.step("body").folder / "weights"
    assert (body / "model.safetensors").exists() and not list(body.glob("heads*"))
    again = jobs.tune(str(folder / "topics.jsonl"), recipe="tune")
    again = override(again, base=str(body), sets=["tuned.length={steps: 1}"])
    assert jobs.run(again, folder / "target", exact=True).has("comparison")


@pytest.mark.parametrize("data, rest, says", [
    (["topics.jsonl"], {}, "reads one manifest of tasks"),
    (["tasks.yaml"], {"objective": "classify"}, "each task of a manifest has its own")])
def test_the_recipe_refuses_rows_and_objectives(folder, data, rest, says):
    with pytest.raises(UserError, match=says):
        jobs.tune([str(folder / d) for d in data], recipe="muppet", **rest)
    assert load_recipe("muppet").nodes
