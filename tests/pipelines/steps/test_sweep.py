"""sweep: where trials stand, what judges them, and what is left of them."""

from __future__ import annotations

import json
import math
import shutil
from typing import Any

import pytest
import yaml

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.engine.executor import execute
from luthier.engine.guards import NotFinite
from luthier.engine.steps.fit import Fit
from luthier.pipelines import jobs
from luthier.pipelines.comparing import _with_rate
from luthier.pipelines.steps.sweep import Sweep, next_rate

F = 10**0.5


def placed(losses, trials: int, start: float = 1e-3) -> list[float]:
    """The rates that a search of so many trials visits, when `losses` gives a rate's loss."""
    tried = {start: losses(start)}
    while len(tried) < trials:
        rate = next_rate(tried, F)
        assert rate not in tried
        tried[rate] = losses(rate)
    return list(tried)


def bowl(best: float):
    return lambda rate: abs(math.log(rate / best))


def test_the_first_three_stand_around_the_default():
    assert placed(bowl(1e-3), 3) == [1e-3, 3.16e-4, 3.16e-3]
    assert placed(bowl(1e-9), 3) == placed(bowl(1e3), 3) == [1e-3, 3.16e-4, 3.16e-3]


@pytest.mark.parametrize("best, after", [(1e-6, [9.99e-5, 3.16e-5, 9.99e-6]), (1.0, [9.99e-3, 3.16e-2, 9.99e-2])])
def test_the_range_is_widened_while_the_best_is_at_an_end(best, after):
    assert placed(bowl(best), 6)[3:] == pytest.approx(after, rel=5e-3)


def test_within_the_range_the_grid_is_refined_towards_the_better_neighbour():
    tried = placed(bowl(1.3e-3), 5)
    assert tried[3] == pytest.approx(math.sqrt(1e-3 * 3.16e-3), rel=1e-2)
    assert min(tried, key=bowl(1.3e-3)) == pytest.approx(1.3e-3, rel=0.1)


def test_a_trial_that_diverges_is_the_worst_and_the_search_goes_the_other_way():
    assert placed(lambda r: math.inf if r > 2e-4 else r, 5)[3:] == pytest.approx([1e-4, 3.16e-5], rel=1e-2)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"{'birch' if i % 2 else 'heron'} {i}", "label": "ab"[i % 2]}) + "\n"
                            for i in range(16)))
    made = jobs.tune(str(path)).edit(**{"base.model": "pico-encoder", "tuned.length": {"steps": 2}})
    steps = {n: s for n, s in made.text["steps"].items() if n in ("base", "rows", "split", "tuned")}
    return Recipe({**made.text, "steps": steps})


@pytest.fixture(scope="module")
def swept(recipe: Recipe, engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return execute(_with_rate(recipe, "sweep:3"), tmp_path_factory.mktemp("swept") / "run", engine)


def test_the_rate_with_the_lowest_dev_loss_is_trained_with(swept, recipe, engine, tmp_path):
    chosen = swept.step("tuned@rate")
    trials = {t["learning_rate"]: t["loss"] for t in chosen.meta["trials"]}
    assert len(trials) == 3 and chosen.meta["learning_rate"] == min(trials, key=trials.get)
    rate = swept.step("tuned").meta["fit"]["learning_rate"]
    assert rate == {"value": chosen.meta["learning_rate"], "source": "swept on dev, 3 trials"}
    assert {r["learning_rate"]: r["loss"] for r in read_lines(chosen.folder / "trials.jsonl")} == trials
    # The same training by itself, told the rate, leaves the same weights and the loss that the trial was judged by.
    alone = execute(recipe.edit(**{"tuned.learning_rate": rate["value"], "tuned.validation": {"every_steps": 2}}),
                    tmp_path / "alone", engine).step("tuned")
    assert alone.identity == swept.step("tuned").identity
    assert read_lines(alone.folder / "curve.jsonl")[-1]["dev_loss"] == trials[rate["value"]]


def test_what_the_search_took_is_counted_and_its_weights_are_gone(swept):
    found = swept.step("tuned@rate").meta
    assert found["fit"]["trainings"] == 3 and found["fit"]["steps"] == 6
    assert found["fit"]["tokens"] == sum(t["tokens"] for t in found["trials"]) > 0
    assert not list((swept.folder / "steps" / "tuned@rate").glob("fit-*"))


def test_a_search_reads_no_test_row(swept, make_ctx, tmp_path):
    """Without the test's rows on disk it finds the same."""
    split = swept.step("split")
    shutil.copytree(split.folder, tmp_path / "split")
    shutil.rmtree(tmp_path / "split" / "examples" / "unseen")
    inputs = {"base": swept.step("base"), "examples": Artifact(split.kind, tmp_path / "split", split.meta, split.identity)}
    step = Sweep(fit=_text(swept)["steps"]["tuned@rate"]["fit"], trials=3)
    made = step.run(inputs, make_ctx("tuned", inputs))
    assert made.meta["learning_rate"] == swept.step("tuned@rate").meta["learning_rate"]
    assert [t["loss"] for t in made.meta["trials"]] == [t["loss"] for t in swept.step("tuned@rate").meta["trials"]]


def _text(run: Run) -> dict[str, Any]:
    return yaml.safe_load((run.folder / "recipe.yaml").read_text())


def test_trials_that_diverge_are_told_and_when_all_do_it_is_refused(monkeypatch, make_ctx, swept):
    def diverge(self: Fit, inputs: Any, ctx: Any) -> Any:
        if self.learning_rate is None or self.learning_rate > limit:
            raise NotFinite("The loss of step 1 is nan.")
        return run(self, inputs, ctx)

    run, limit = Fit.run, 2e-4
    monkeypatch.setattr(Fit, "run", diverge)
    inputs = {n: swept.step(s) for n, s in (("base", "base"), ("examples", "split"))}
    step = Sweep(fit=_text(swept)["steps"]["tuned@rate"]["fit"], trials=3)
    found = step.run(inputs, make_ctx("tuned", inputs)).meta
    assert [t["loss"] is None for t in found["trials"]] == [True, False, True] and found["learning_rate"] < limit
    assert found["default"] == 5e-4 and found["at_end"]
    limit = 0.0
    with pytest.raises(UserError, match="Every learning rate tried diverges"):
        step.run(inputs, make_ctx("again", inputs))


@pytest.mark.parametrize("fit, said", [
    ({"use": "base", "model": "pico"}, "'base' is no training"),
    ({"use": "fit", "learning_rate": 1e-3, "streams": {"validation": "examples.dev"}}, "has a learning rate"),
    ({"use": "fit"}, "needs streams: {validation"),
])
def test_what_can_not_be_searched_is_refused(fit, said):
    with pytest.raises(UserError, match=said):
        Sweep(fit=fit).check()


def test_two_learning_rates_are_one_too_many(engine, tmp_path, recipe):
    text = _with_rate(recipe, "sweep:3").edit(**{"tuned.learning_rate": 1e-3})
    with pytest.raises(UserError, match="Leave out one of the two"):
        execute(text, tmp_path / "run", engine)
