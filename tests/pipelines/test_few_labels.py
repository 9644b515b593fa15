"""Recipes for few labels as a user runs them: setfit, distill and warmup, from files to compared arms."""

from __future__ import annotations

import json

import pytest

from luthier.core.files import read_lines
from luthier.core.recipe import load_recipe
from luthier.pipelines import jobs
from luthier.pipelines.overrides import override

LOW, HIGH = "module class object list dict".split(), "scope block import yield await".split()


@pytest.fixture
def files(tmp_path):
    """Labelled rows, texts of the same words, and texts of others."""
    def row(n):
        words = (LOW, HIGH)[n % 2]
        return " ".join(words[(n // 2 + k * (1 + n % 3)) % 5] for k in range(5)) + f" {n}"

    labelled = [{"text": row(n), "label": ("low", "high")[n % 2]} for n in range(30)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(r) + "\n" for r in labelled))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": row(n)}) + "\n" for n in range(100, 130)))
    return tmp_path


def ran(recipe, files, *sets):
    """The accuracy of the run, and its folder."""
    made = jobs.tune([str(files / "few.jsonl")], recipe=recipe)
    made = override(made, base="pico-encoder", sets=sets)
    run = jobs.run(made, files / "run", exact=True, with_card=False)
    scores = read_lines(run.folder / "steps" / "arm-tuned" / "scores.jsonl")
    return [r["value"] for r in scores], run


def test_setfit_from_a_file_to_an_answer(files):
    values, run = ran("setfit", files, "encoder.learning_rate=1e-3", "pairs.steps=['text-pairs:rounds=2']")
    assert len(values) >= 3 and sum(values) / len(values) >= 0.6
    assert run.step("tuned").meta["heads"]["labels"]["use"] == "logistic" and run.step("tuned").kind == "model"
    assert (run.folder / "report.html").exists()


def test_warmup_from_files_to_an_answer(files):
    values, run = ran("warmup", files, "encoder.model=pico-encoder", f"pool.path={files / 'texts.jsonl'}",
                      "picked.steps=['got-d:budget=10']", "tuned.learning_rate=1e-3")
    assert len(values) >= 3
    ledger = run.step("picked").ledger()
    assert len(list(run.step("picked").examples("all"))) == 10 and len(ledger) == 20


@pytest.mark.parametrize("name", ["llava", "setfit", "distill", "warmup"])
def test_recipes_are_whole(name):
    recipe = load_recipe(name)
    assert recipe.nodes and recipe.text["about"]
