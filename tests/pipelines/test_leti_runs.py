"""LeTI as a user runs it: problems in a file, rounds of programs that are run and learned, compared arms."""

from __future__ import annotations

import json

import pytest

from luthier.core.errors import UserError
from luthier.core.files import read_json, read_lines
from luthier.core.recipe import load_recipe
from luthier.pipelines import jobs
from luthier.pipelines.overrides import override
from luthier.techniques.data._formats import FORMATS
from luthier.techniques.data._problems import problem, runs


@pytest.fixture
def files(tmp_path):
    """Ten problems with tests, and texts to be read beside."""
    problems = [{"prompt": f"# f(x) gives x plus {n}\ndef f(x):\n", "tests": f"assert f(1) == {1 + n}", "id": f"p{n}"}
                for n in range(10)]
    texts = [{"text": f"def g(x):\n    return x + {n}"} for n in range(6)]
    for name, rows in (("problems", problems), ("texts", texts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


WRITE = "{use: sample, max_new_tokens: 6}"
SETS = ("tuned.times=2", "tuned.steps.tuned.length={steps: 2}", "split.max_overlap=1.0",
        f"tuned.steps.told.steps=['leti:samples=2,decoder={WRITE}']",
        *(f"{arm}.metrics=['pass-at-k:n=2,prefix=<|good|>,decoder={WRITE}']" for arm in ("arm-base", "arm-tuned")))


def test_one_command_writes_runs_learns_and_repeats(files, monkeypatch):
    from luthier.engine import sandbox

    ran, own = [], sandbox.execute
    monkeypatch.setattr(sandbox, "execute", lambda programs, *a, **k: ran.append(len(programs)) or own(programs, *a, **k))
    # A model with random weights seldom writes an end: a stop word in nearly every text stands for it.
    monkeypatch.setattr("luthier.techniques.data.leti.STOP_WORDS", ("e", "a", " "))
    made = jobs.tune([str(files / "problems.jsonl")], recipe="leti")
    made = override(made, base="pico", sets=(f"texts.path={files / 'texts.jsonl'}", *SETS))
    run = jobs.run(made, files / "run", exact=True)
    rounds = files / "run" / "steps" / "tuned" / "rounds"
    assert sorted(p.name for p in rounds.iterdir() if p.is_dir()) == ["0", "1"]
    for number in ("0", "1"):
        told = [e.answer for e in _examples(rounds / number / "told", "train")]
        assert told and all(t.startswith(("<|good|>", "<|bad|>")) for t in told)
        assert any("<|lang_feedback|>" in t and "<|/lang_feedback|># f(x) gives" in t for t in told)
        curve = read_lines(rounds / number / "tuned" / "curve.jsonl")
        assert len(curve) == 2
        mixed = read_json(rounds / number / "tuned" / "luthier.json")["fit"]["mixtures"]
        assert "texts.all" in json.dumps(mixed) and "examples.train" in json.dumps(mixed)
    one, two = (read_json(rounds / n / "whole" / "luthier.json")["identity"] for n in ("0", "1"))
    assert one != two and run.step("tuned").meta["rounds"] == 2, "the second round goes on from the first one's model"
    assert len(ran) >= 6, "programs of each round and of both arms were run"
    scores = read_lines(run.folder / "steps" / "arm-tuned" / "scores.jsonl")
    assert scores and all(0 <= r["value"] <= 1 for r in scores)
    assert (run.folder / "report.html").exists()
    evaluates_on_more_problems(run, files)


def evaluates_on_more_problems(run, files):
    """What `luthier evaluate RUN more.jsonl` does: programs are run, and the tuned model is asked for good ones."""
    more = [{"prompt": f"# g(x) gives x minus {n}\ndef g(x):\n", "tests": [f"assert g(1) == {1 - n}"]} for n in range(6)]
    (files / "more.jsonl").write_text("".join(json.dumps(r) + "\n" for r in more))
    made = jobs.evaluate(run, str(files / "more.jsonl"))
    metrics = {n.name: n.step.metrics[0] for n in made.nodes if n.name.startswith("arm-")}
    assert (metrics["arm-base"].prefix, metrics["arm-tuned"].prefix) == ("", "<|good|>")
    short = {"use": "pass-at-k", "n": 1, "decoder": {"use": "sample", "max_new_tokens": 3}}
    made = made.edit(**{"arm-base.metrics": [short], "arm-tuned.metrics": [{**short, "prefix": "<|good|>"}]})
    done = jobs.run(made, files / "evaluated", exact=True, with_card=False)
    for arm in ("arm-base", "arm-tuned"):
        assert len(read_lines(done.folder / "steps" / arm / "scores.jsonl")) == 6


def _examples(folder, subset):
    from luthier.core.artifact import open_artifact

    return open_artifact(folder).examples(subset)


def test_problems_are_not_trained_on_as_they_are(files):
    with pytest.raises(UserError, match=r"program-tests rows.*--recipe leti"):
        jobs.tune([str(files / "problems.jsonl")])


def test_a_problem_without_tests_is_refused_by_its_row(files):
    path = files / "bare.jsonl"
    path.write_text('{"prompt": "def f(x):", "tests": "assert f(1)"}\n{"prompt": "def g(x):", "tests": ""}\n')
    with pytest.raises(UserError, match="tests holds nothing; expected text, or a list of texts"):
        jobs.tune([str(path)], recipe="leti")
    path.write_text('{"prompt": "def f(x):"}\n')
    with pytest.raises(UserError, match="no tests"):
        jobs.tune([str(path)], recipe="leti")


def test_rows_of_known_sets_become_problems():
    mbpp = {"text": "Write a function to add one.", "code": "def f(x):\n    return x + 1",
            "test_list": ["assert f(1) == 2", "assert f(2) == 3"], "test_setup_code": "import math", "task_id": 7}
    assert FORMATS["program-tests"].fits(mbpp) and not FORMATS["raw-text"].missing(mbpp)
    made = problem("m", mbpp, {}, {})
    assert made.part("question") == '"""\nWrite a function to add one.\nassert f(1) == 2\n"""\n'
    assert made.meta["tests"] == "import math\nassert f(1) == 2\nassert f(2) == 3" and made.answer == mbpp["code"]
    exec(f"{made.part('question')}{made.answer}\n\n{made.meta['tests']}", {})
    human = {"prompt": 'def f(x):\n    """Adds one."""\n', "canonical_solution": "    return x + 1\n", "entry_point": "f",
             "test": "def check(candidate):\n    assert candidate(1) == 2\n"}
    made = problem("h", human, {}, {"meta": {"more": 1}})
    assert made.part("question") == human["prompt"] and made.meta["tests"].endswith("check(f)") and made.meta["more"] == 1
    exec(f"{made.part('question')}{made.answer}\n\n{made.meta['tests']}", {})


@pytest.mark.parametrize("prompt, code", [
    ("# Add.\n", True), ("def f(x):", True), ("def f(x):\n    '''Adds.'''\n", True), ("class A:\n    def f(self):\n", True),
    ("Write a function.", False), ("import math\ndef f(x):\n    y = 1\n", True)])
def test_what_can_stand_above_a_program(prompt, code):
    assert runs(prompt) is code


def test_the_name_of_a_function_must_be_one():
    found = FORMATS["program-tests"].problems({"prompt": "x", "tests": ["a"], "entry_point": "f g"}, {})
    assert found == ["entry_point is 'f g'; expected the name of a function"]


def test_the_recipe_is_whole():
    recipe = load_recipe("leti")
    assert recipe.nodes and recipe.text["about"]
