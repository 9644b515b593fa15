"""compare: which recipe each arm has, and what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import UserError
from luthier.core.recipe import Recipe, load_recipe
from luthier.pipelines import jobs
from luthier.pipelines.comparing import plan
from luthier.pipelines.overrides import override


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"Where is {w}?", "answer": w}) + "\n" for w in "abcdefgh"))
    return str(path)


def planned(rows: str, learning_rate: str = "default", **said: Any) -> Any:
    parts = {"method": ["lora", "bitfit"], **said.pop("parts", {})}
    return plan(rows, parts=parts, learning_rate=learning_rate, **said)


def test_an_arm_is_what_tune_would_run(rows):
    made = planned(rows, base="pico", seed=7, sets=["tuned.length={epochs: 1}"], seeds=2)
    for arm in ("lora", "bitfit"):
        alone = override(jobs.tune(rows), base="pico", seed=7, parts={"method": [arm]}, sets=["tuned.length={epochs: 1}"])
        of_arm = made.grid.variants[arm]
        assert {n.name: n.step.identity for n in of_arm.nodes} == {
            n.name: n.step.identity for n in alone.nodes if n.name != "comparison"}
    assert list(made.grid.seeds) == [7, 8] and made.grid.base.seed == 7
    assert made.metrics == {"f1": True, "exact-match": True} and (made.level, made.margin) == (0.95, 0.02)


def test_each_arm_is_searched_by_equally_many_trials(rows):
    nodes = {n.name: n for n in planned(rows, "sweep:4", seeds=3).grid.recipe().nodes}
    searches = [n for n in nodes.values() if n.step.info.name == "sweep"]
    assert [n.name for n in searches] == ["tuned@rate@lora", "tuned@rate@bitfit"]
    assert all(n.step.trials == 4 and n.seed is None and n.scope == "tuned" for n in searches)
    assert all(nodes[f"tuned@{a}@s{s}"].inputs["rate"] == f"tuned@rate@{a}"
               for a in ("lora", "bitfit") for s in range(3))


def test_a_number_is_the_rate_of_all(rows):
    fits = [n.step for n in planned(rows, "0.003").grid.recipe().nodes if n.step.info.name == "fit"]
    assert [f.learning_rate for f in fits] == [0.003, 0.003]


@pytest.mark.parametrize("parts, arms", [
    ({"method": [], "objective": ["supervised", "pretrain"]}, ["supervised", "pretrain"]),
    ({"method": ["bitfit"], "optimizer": ["adamw", "adamw:weight_decay=0.1"]}, ["adamw", "adamw-weight_decay-0.1"]),
    ({"method": ["lora"], "decoder": ["greedy", "greedy:max_new_tokens=9"]}, ["greedy", "greedy-max_new_tokens-9"]),
    ({"method": ["lora:rank=4", "peft:{type: IA3}"]}, ["lora-rank-4", "peft-type-IA3"]),
])
def test_any_kind_may_vary(rows, parts, arms):
    made = planned(rows, parts=parts)
    assert list(made.grid.arms) == arms


def test_recipes_may_be_arms(rows, tmp_path):
    other = load_recipe("tune").edit(**{"tuned.method": "bitfit"})
    (tmp_path / "mine.yaml").write_text(other.to_yaml())
    made = plan(rows, parts={"recipe": ["tune", str(tmp_path / "mine.yaml")]}, learning_rate="default")
    assert list(made.grid.arms) == ["tune", "mine"] and made.kind == "recipe"


def test_a_regularizer_is_compared_with_none(rows):
    from tests.contracts import dummies  # noqa: F401  (registers the dummies)

    made = planned(rows, parts={"method": ["lora"], "regularizer": ["none", "dummy-memory"]})
    found = {a: next(n.step for n in r.nodes if n.name == "tuned").regularizers for a, r in made.grid.variants.items()}
    assert found["none"] == () and len(found["dummy-memory"]) == 1


def test_a_manifest_of_tasks_is_refused_and_a_recipe_that_tests_what_comes_of_it_is_not(tmp_path):
    (tmp_path / "tasks.yaml").write_text("- {name: topics, type: cls, train: topics.jsonl}\n")
    with pytest.raises(UserError, match="tasks.yaml is a manifest of tasks: .* luthier reproduce muppet draws it"):
        plan(str(tmp_path / "tasks.yaml"), parts={"method": ["full", "lora"]}, sets=["n_tasks=[0,2,8,24]"])
    text = load_recipe("muppet").text
    text["steps"]["score"] = {"use": "evaluate", "arm": "body", "sets": ["topics"], "metrics": ["accuracy"],
                              "inputs": {"base": "base", "tuned": "tuned", "examples": "tasks"}}
    (tmp_path / "mine.yaml").write_text(Recipe(text).to_yaml())
    made = plan(str(tmp_path / "tasks.yaml"), parts={"method": ["full", "lora"], "recipe": [str(tmp_path / "mine.yaml")]},
                learning_rate="default")
    assert list(made.grid.arms) == ["full", "lora"]


@pytest.mark.parametrize("said, why", [
    ({"parts": {"method": []}}, "Repeat one of --method"),
    ({"parts": {"method": ["lora"]}}, "--method lora alone has nothing to be compared with"),
    ({"parts": {"method": ["lora", "lora"]}}, "--method lora is given twice"),
    ({"parts": {"method": ["lora", "lora:rank=8"]}}, "The arms 'lora' and 'lora-rank-8' are the same"),
    ({"parts": {"method": ["lora", "bitfitt"]}}, "Did you mean 'bitfit'"),
    ({"parts": {"method": ["lora", "none"]}}, "--method none: a training needs one"),
    ({"parts": {"optimizer": ["adamw", "adamw:beta1=0.8"]}}, "--method and --optimizer are both repeated"),
    ({"seeds": 0}, "--seeds 0: at least 1 is needed"),
    ({"learning_rate": "sweep:2"}, "a sweep takes at least 3 trials, such as sweep:5"),
    ({"learning_rate": "sweep:"}, "a sweep takes at least 3 trials"),
    ({"learning_rate": "swep"}, "Did you mean 'sweep'"), ({"learning_rate": "-1"}, "a rate is greater than 0"),
    ({"learning_rate": "sweep", "sets": ["tuned.learning_rate=0.1"]}, "The training has a learning rate"),
    ({"learning_rate": "sweep", "sets": ["tuned.streams={}"]}, "A sweep judges learning rates on dev"),
    ({"parts": {"metric": ["f1x"]}}, "There is no metric"),
    ({"parts": {"method": [], "recipe": ["muppet"]}, "sets": ["tuned.n_tasks=[0, 2]"]}, "--recipe muppet reads a manifest of "
     "tasks.*answers nothing that could be compared. A curve over numbers of tasks is a body for each"),
])
def test_what_can_not_be_compared_is_refused(rows, said, why):
    with pytest.raises(UserError, match=why):
        planned(rows, **said)


def test_arms_without_a_common_metric_are_refused(rows, tmp_path):
    other = load_recipe("tune").edit(**{"arm-tuned.metrics": ["perplexity"]})
    (tmp_path / "mine.yaml").write_text(other.to_yaml())
    with pytest.raises(UserError, match="no metric in common"):
        plan(rows, parts={"recipe": ["tune", str(tmp_path / "mine.yaml")]}, learning_rate="default")
