"""basin: independently initialised nets have a barrier, tunes of one start hardly any, a model and itself none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_json, read_lines, write_json
from luthier.core.finding import Finding
from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.engine import pico as pico_models
from luthier.engine.executor import execute
from luthier.engine.subjects import Subject
from luthier.techniques.evaluation.basin import degrees

WORDS = {"dry": ("sand", "dust", "chalk", "straw"), "wet": ("rain", "pond", "moss", "river")}
ROWS = [{"text": f"The plot has {word} and {other}.", "label": label} for label, words in WORDS.items() for word in words
        for other in words if word != other]


@pytest.fixture(scope="module")
def runs(engine, tmp_path_factory) -> dict[str, Path]:
    """Two tunes of one base, and one of another base that is said to be of the first."""
    folder = tmp_path_factory.mktemp("basins")
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    for name, seed in (("one", 0), ("two", 1)):
        pico_models.make("pico-encoder", folder / name)
        path, rng = folder / name / "model.safetensors", torch.Generator().manual_seed(seed)
        own = load_file(path)
        drawn = {n: 0.1 * torch.randn(t.shape, generator=rng) if t.dim() == 2 else t for n, t in own.items()}
        save_file(drawn, path, metadata={"format": "pt"})
    before = torch.get_num_threads()
    for name, base, steps in (("a", "one", 40), ("b", "one", 46), ("far", "two", 40)):
        tuned = {"use": "fit", "method": "full", "length": {"steps": steps}, "learning_rate": 3e-3, "dtype": "float32",
                 "tasks": [{"data": "examples.all", "objective": "classify", "head": "linear"}], "over_long": "truncate",
                 "inputs": {"base": "base", "examples": "rows"}}
        execute(Recipe({"name": "basins", "seed": 0 if base == "one" else 1, "steps": {
            "base": {"use": "base", "model": str(folder / base)},
            "rows": {"use": "read", "path": str(folder / "rows.jsonl")}, "tuned": tuned}}), folder / name, engine)
    torch.set_num_threads(before)
    record = folder / "far" / "steps" / "tuned" / "luthier.json"
    base = Run.open(folder / "a").step("base")
    write_json(record, {**read_json(record), "base": {**read_json(record)["base"], "identity": base.identity}})
    return {name: folder / name for name in ("a", "b", "far")} | {"rows": folder / "rows.jsonl"}


@pytest.fixture
def looked(runs, engine, make_ctx):
    """The finding about run `a` and another one, and its curve."""
    def look(other: str) -> tuple[Finding, list[dict[str, float]]]:
        run, ctx = Run.open(runs["a"]), make_ctx(other)
        audit = build("audit", {"use": "basin", "other": str(runs[other]), "data": str(runs["rows"]), "points": 5})
        (found,) = audit.measure(ctx, Subject(engine, run.step("base"), run.step("tuned")))
        return found, read_lines(ctx.folder / "curve.jsonl")

    return look


@pytest.mark.oracle(seed=44, clause=6, against="independent initialisations as a negative control")
def test_independent_nets_have_a_barrier_and_tunes_of_one_start_hardly_any(looked):
    far, curve = looked("far")
    assert far.difference > 0.1 and far.interval[0] > 0 and far.verdict == "fail" and 0 < far.extra["t"] < 1
    assert curve[0]["accuracy"] == curve[-1]["accuracy"] == 1 and far.extra["gain"] <= 0
    near, _ = looked("b")
    assert abs(near.difference) < 0.01 and near.verdict == "pass" and near.extra["degrees"] < 60


@pytest.mark.oracle(seed=44, clause=6, against="the chord between the ends by hand")
def test_the_barrier_stands_on_the_chord_between_the_ends(looked):
    found, curve = looked("far")
    for row in curve:
        chord = (1 - row["t"]) * curve[0]["loss"] + row["t"] * curve[-1]["loss"]
        assert row["straight"] == pytest.approx(chord) and row["barrier"] == pytest.approx(row["loss"] - chord, abs=1e-6)
    assert found.difference == pytest.approx(max(row["barrier"] for row in curve), abs=1e-6)


def test_a_model_and_itself_have_no_barrier(looked):
    same, curve = looked("a")
    assert same.interval == (0.0, 0.0) and same.difference == pytest.approx(0, abs=1e-6) and same.verdict == "pass"
    assert [row["t"] for row in curve] == [0, 0.25, 0.5, 0.75, 1] and same.extra["degrees"] == pytest.approx(0, abs=0.1)


def test_the_angle_by_hand():
    base, one, two = ({"w": torch.tensor(v)} for v in ([1.0, 1.0], [2.0, 1.0], [1.0, 3.0]))
    assert degrees(base, one, two) == pytest.approx(90) and degrees(base, one, one) == pytest.approx(0, abs=1e-5)
    assert degrees(base, {"w": torch.tensor([2.0, 2.0])}, two) == pytest.approx(45) and degrees(base, base, two) == 0


def test_what_does_not_lie_on_a_line_is_refused(runs, engine, make_ctx, tmp_path):
    for spec, said in (("basin", "neither a run with a tuned model"), (f"basin:other={tmp_path}", "Name the second tune"),
                       (f"basin:other={runs['b']},data=nowhere.jsonl", "there is no such file")):
        with pytest.raises(UserError, match=said):
            build("audit", spec).check()
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match="line 1: has neither text and label nor question and answer"):
        build("audit", f"basin:other={runs['b']},data={tmp_path / 'bad.jsonl'}").check()
    run = Run.open(runs["a"])
    subject = Subject(engine, run.step("base"), run.step("tuned"))
    with pytest.raises(UserError, match="needs rows to measure on"):
        build("audit", f"basin:other={runs['b']}").measure(make_ctx("rows"), subject)
    shutil.copytree(runs["b"], tmp_path / "labels")
    record = tmp_path / "labels" / "steps" / "tuned" / "luthier.json"
    write_json(record, {**read_json(record), "labels": {"examples.all": ["cold", "warm"]}})
    with pytest.raises(UserError, match="labels of the two models differ"):
        build("audit", f"basin:other={tmp_path / 'labels'}").measure(make_ctx("labels"), subject)
    with pytest.raises(UserError, match="compares two tunes of one base"):
        build("audit", f"basin:other={runs['b']}").measure(make_ctx("base"), Subject(engine, run.step("base")))
