"""Grids: shared steps stand once, seeds move training alone, and a cell gives what its recipe gives by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.core.recipe import Recipe, load_recipe
from luthier.core.run import Run
from luthier.engine.executor import Watcher, execute
from luthier.pipelines import jobs
from luthier.pipelines.grid import Cost, Grid, evaluations, results, slug

TWO = {"lora": {"tuned.method": "lora:rank=4"}, "bitfit": {"tuned.method": "bitfit"}}


def inputs(recipe: Recipe) -> dict[str, dict[str, str]]:
    return {n.name: n.inputs for n in recipe.nodes}


def rows(path: Path, count: int = 16) -> str:
    texts = [{"text": f"plot {i} {'birch' if i % 2 else 'heron'} by the {i * 7} stones", "label": "odd" if i % 2 else "even"}
             for i in range(count)]
    path.write_text("".join(json.dumps(r) + "\n" for r in texts))
    return str(path)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    made = jobs.tune(rows(tmp_path_factory.mktemp("rows") / "rows.jsonl"))
    return made.edit(**{"base.model": "pico-encoder", "tuned.length": {"steps": 2}})


@pytest.fixture(scope="module")
def finished(tuned: Recipe, engine: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, Run]:
    grid = Grid(tuned, TWO, [0, 1])
    return grid, execute(grid.recipe(), tmp_path_factory.mktemp("grid") / "run", engine)


def test_what_no_arm_and_no_seed_reaches_stands_once():
    made = Grid(load_recipe("tune"), TWO, [0, 1, 2]).recipe()
    names = [n.name for n in made.nodes]
    assert sorted(n for n in names if "@" not in n) == ["arm-base", "base", "rows", "split"]
    assert sum(n.startswith("tuned@") for n in names) == sum(n.startswith("arm-tuned@") for n in names) == 6
    assert inputs(made)["arm-tuned@bitfit@s2"] == {"base": "base", "tuned": "tuned@bitfit@s2", "examples": "split"}
    assert "comparison" not in {n.scope for n in made.nodes}
    seeds = {n.name: n.seed for n in made.nodes}
    assert seeds["tuned@lora@s2"] == seeds["arm-tuned@lora@s2"] == 2
    assert seeds["split"] is None and seeds["arm-base"] is None


def test_steps_below_an_edit_stand_once_an_arm_and_those_above_once():
    arms = {"few": {"split.dev_share": 0.2}, "many": {"split.dev_share": 0.3}}
    names = [n.name for n in Grid(load_recipe("tune"), arms, [0, 1]).recipe().nodes]
    assert sorted(n for n in names if n.startswith(("rows", "split"))) == ["rows", "split@few", "split@many"]
    assert sum(n.startswith("tuned@few") for n in names) == 2


def test_arms_that_share_a_training_train_once():
    arms = {"greedy": {"arm-tuned.decoder": "greedy"}, "long": {"arm-tuned.decoder": "greedy:max_new_tokens=9"}}
    names = [n.name for n in Grid(load_recipe("tune"), arms, [0, 1]).recipe().nodes]
    assert sorted(n for n in names if n.startswith("tuned")) == ["tuned@s0", "tuned@s1"]
    assert sorted(n for n in names if n.startswith("arm-tuned@long")) == ["arm-tuned@long@s0", "arm-tuned@long@s1"]
    some = {**arms, "bitfit": {"tuned.method": "bitfit"}}
    names = [n.name for n in Grid(load_recipe("tune"), some, [0]).recipe().nodes]
    assert sorted(n for n in names if n.startswith("tuned")) == ["tuned@bitfit@s0", "tuned@greedy+long@s0"]


def test_an_arm_may_be_a_recipe_and_an_empty_edit_is_the_recipe_itself():
    base = load_recipe("tune")
    other = base.edit(**{"tuned.method": "bitfit"})
    grid = Grid(base, {"as-it-is": {}, "other": other}, [0])
    assert grid.names("other", 0)["tuned"] == "tuned@other@s0" and grid.names("as-it-is", 0)["base"] == "base"


@pytest.mark.parametrize("arms, seeds, said", [
    ({}, [0], "at least one arm"), (TWO, [], "at least one arm and one seed"), (TWO, [1, 1], "Seed 1 is given twice"),
    ({"a/b": {}}, [0], "'a/b' can't name an arm"), ({"x@y": {}}, [0], "such as x-y"),
    ({"a": {"tuned.method": "lora"}, "b": {}}, [0], "The arms 'a' and 'b' are the same"),
    ({"a": {"tuned.mehtod": "lora"}}, [0], "Did you mean 'method'?"),
    ({"a": {"tuned.seed": 5}}, [0, 1], r"tuned.seed = 5 \(arm 'a'\).* its seeds \(0, 1 here\).*Leave tuned.seed out"),
    ({"a": {}, "b": {"arm-tuned.seed": 3}}, [0], r"arm-tuned.seed = 3 \(arm 'b'\)"),
])
def test_what_is_no_grid_is_refused(arms, seeds, said):
    with pytest.raises(UserError, match=said):
        Grid(load_recipe("tune"), arms, seeds)


def test_names_of_arms_are_made_of_what_was_written():
    assert slug("lora:rank=4") == "lora-rank-4" and slug("peft:{type: IA3}") == "peft-type-IA3" and slug("::") == "arm"


def test_a_step_may_have_a_seed_of_its_own(tuned):
    own = tuned.edit(**{"tuned.seed": 5})
    assert {n.name: n.seed for n in own.nodes}["tuned"] == 5 and own.fill()["steps"]["tuned"]["seed"] == 5
    assert own.identity != tuned.identity and own.edit(**{"tuned.seed": None}).identity == tuned.identity
    with pytest.raises(UserError, match="Step 'base' .* draws nothing"):
        tuned.edit(**{"base.seed": 1})
    with pytest.raises(UserError, match=r"tuned\.seed = 'x' is not a whole number"):
        tuned.edit(**{"tuned.seed": "x"})


def test_base_and_split_ran_once_and_seeds_changed_only_training(finished):
    _, run = finished
    steps = run.steps()
    assert sum(s["use"] == "split" for s in steps.values()) == sum(s["use"] == "base" for s in steps.values()) == 1
    fits = {n: s["identity"] for n, s in steps.items() if s["use"] == "fit"}
    assert len(set(fits.values())) == len(fits) == 4
    keys = {n: s["key"] for n, s in steps.items()}
    assert len(set(keys.values())) == len(keys)


def test_a_cell_gives_the_numbers_of_its_recipe_by_itself(finished, tuned, engine, tmp_path):
    grid, run = finished
    for arm, seed in (("lora", 0), ("bitfit", 1)):
        alone = tuned.edit(**{**TWO[arm], **({"tuned.seed": seed, "arm-tuned.seed": seed} if seed else {})})
        single = execute(alone, tmp_path / arm, engine)
        names = grid.names(arm, seed)
        for step in ("split", "tuned", "arm-tuned", "arm-base"):
            assert single.step(step).identity == run.step(names[step]).identity, (arm, step)


def test_scores_and_costs_are_read_by_arm_and_seed(finished):
    grid, run = finished
    found = results(run, grid)
    assert [(c.arm, c.seed) for c in found.cells] == [("lora", 0), ("lora", 1), ("bitfit", 0), ("bitfit", 1)]
    assert found.higher_is_better == {"accuracy": True} and list(found.references) == ["majority label"]
    written = read_lines(run.folder / "steps" / "arm-tuned@lora@s1" / "scores.jsonl")
    values = found.scores("lora")[1]["unseen", "accuracy"]
    assert values == {r["id"]: (r["cluster"], float(r["value"])) for r in written}
    one, other = found.cells[0].cost, found.cells[2].cost
    assert one.steps == other.steps == 2 and one.tokens == other.tokens > 0 and one.trainings == 1
    assert one.trained_parameters == run.step("tuned@lora@s0").meta["fit"]["trained_parameters"]
    assert one.artifact_bytes > 0 and one.peak_mb > 0 and one.step_seconds >= one.seconds > 0
    assert found.cells[0].search == Cost()


def test_the_second_time_nothing_runs(finished, engine):
    grid, run = finished
    cached = []
    execute(grid.recipe(), run.folder, engine, Watcher(finished=lambda name, seconds, kept: cached.append(kept)))
    assert cached and all(cached)


def test_which_evaluation_counts_must_be_clear(finished, tuned):
    grid, run = finished
    assert evaluations(tuned) == ["arm-base", "arm-tuned"]
    assert results(run, grid, "arm-base").cells[0].scores == results(run, grid).references["majority label"]
    with pytest.raises(UserError, match="Did you mean 'arm-tuned'"):
        results(run, grid, "arm-tune")


def test_costs_of_one_training_after_another_add_up():
    first, second = Cost(3, 100, 2.0, 3.0, 50, 10, 500.0, 1), Cost(2, 60, 2.0, 2.5, 8, 4, 300.0, 1)
    both = first.and_(second)
    assert both == Cost(5, 160, 4.0, 5.5, 8, 4, 500.0, 2) and both.tokens_per_second == 40 and Cost().tokens_per_second == 0
