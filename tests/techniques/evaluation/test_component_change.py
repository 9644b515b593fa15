"""How far parts of a model moved: hand cases, and tunes whose files say what moved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.engine.executor import execute
from luthier.engine.subjects import Subject
from luthier.pipelines import auditing
from luthier.techniques.evaluation import component_change
from luthier.techniques.evaluation.component_change import component_of, layer_of

QUERY, BIAS, NORM = "attention.query.weight", "attention.query.bias", "output.LayerNorm.weight"
BEFORE = {"embeddings.word.weight": [[3.0, 4.0]], "encoder.layer.0." + QUERY: [[3.0, 0.0], [0.0, 4.0]],
          "encoder.layer.1." + QUERY: [[6.0, 8.0], [0.0, 0.0]], "encoder.layer.0." + BIAS: [0.0, 0.0],
          "encoder.layer.1." + BIAS: [1.0, 0.0], "encoder.layer.0." + NORM: [1.0, 1.0], "encoder.layer.1." + NORM: [1.0, 1.0]}
AFTER = {"embeddings.word.weight": [[3.0, 4.0]], "encoder.layer.0." + QUERY: [[3.0, 2.0], [0.0, 4.0]],
         "encoder.layer.1." + QUERY: [[6.0, 8.0], [0.0, 4.0]], "encoder.layer.0." + BIAS: [0.5, 0.0],
         "encoder.layer.1." + BIAS: [1.0, -0.3], "encoder.layer.0." + NORM: [1.3, 1.0], "encoder.layer.1." + NORM: [1.0, 0.5]}


@pytest.fixture
def looking(monkeypatch, make_ctx, engine, pico):
    """Measure on given tensors instead of a model's."""
    def measure(spec, before=BEFORE, after=AFTER):
        sides = ({n: torch.tensor(v) for n, v in side.items()} for side in (before, after))
        monkeypatch.setattr(component_change, "_sides", lambda *a: tuple(sides))
        ctx = make_ctx("hand")
        return build("audit", spec).measure(ctx, Subject(engine, pico, pico)), ctx.folder

    return measure


@pytest.mark.oracle(clause="change by component", against="sums by hand")
def test_both_measures_by_hand_and_that_they_order_components_differently(looking):
    (found,), folder = looking("component-change")
    rows = {r["name"]: r for r in read_lines(folder / "components.jsonl")}
    # Queries: |2| and |4| over 4 entries each, 0.5 and 1; 2 of ||(3, 4)|| = 5 and 4 of ||(6, 8)|| = 10, twice 0.4.
    assert rows["encoder.layer.*." + QUERY] == {"name": "encoder.layer.*." + QUERY, "change": 0.75,
                                                "relative": pytest.approx(0.4), "tensors": 2}
    # Norms: 0.3 and 0.5 over 2 entries; of a size of √2.
    assert rows["encoder.layer.*." + NORM]["change"] == pytest.approx(0.2)
    assert rows["encoder.layer.*." + NORM]["relative"] == pytest.approx(0.4 / 2**0.5)
    # Biases: 0.25 and 0.15; the first has no size, the second moved by 0.3 of 1.
    assert rows["encoder.layer.*." + BIAS]["change"] == pytest.approx(0.2)
    assert rows["encoder.layer.*." + BIAS]["relative"] == pytest.approx(0.3)
    assert rows["embeddings.word.weight"] == {"name": "embeddings.word.weight", "change": 0, "relative": 0, "tensors": 1}
    assert found.right == pytest.approx(0.4) and found.extra["most_relative"] == "encoder.layer.*." + QUERY
    assert found.verdict == "pass" and found.tolerance is None and len(found.extra["bars"]["rows"]) == 4
    tiny = {**{n: v for n, v in AFTER.items() if QUERY not in n}, **{n: v for n, v in BEFORE.items() if QUERY in n}}
    tiny["embeddings.word.weight"] = [[3.5, 4.0]]
    (other,), _ = looking("component-change", after=tiny)
    # Embeddings: 0.25 an entry is the most, 0.1 of their size is not.
    assert other.extra["most_change"] == "embeddings.word.weight" and other.extra["most_relative"] == "encoder.layer.*." + BIAS


@pytest.mark.oracle(clause="change of each bias", against="sums by hand")
def test_bias_terms_by_hand(looking):
    dense = "encoder.layer.0.output.dense.bias"
    (found,), folder = looking("bias-change", {**BEFORE, dense: [1.0] * 4}, {**AFTER, dense: [1.0, 0.5, 1.0, 1.5]})
    assert {r["name"]: r["change"] for r in read_lines(folder / "tensors.jsonl")} == {
        "encoder.layer.0." + BIAS: 0.25, "encoder.layer.1." + BIAS: pytest.approx(0.15), dense: 0.25}
    (found,), folder = looking("bias-change:max_change=0.2", {**BEFORE, dense: [1.0] * 4},
                               {**AFTER, dense: [1.0, 0.8, 1.0, 1.0]})
    assert [(r["name"], r["change"]) for r in read_lines(folder / "layers.jsonl")] == [
        ("encoder.layer.0", pytest.approx((0.25 + 0.05) / 2)), ("encoder.layer.1", pytest.approx(0.15))]
    assert found.right == 0.25 and found.verdict == "fail" and found.tolerance == 0.2
    assert "encoder.layer.0 0.15, encoder.layer.1 0.15" in found.detail and found.extra["most"] == "encoder.layer.*." + BIAS


def test_a_component_is_a_name_without_its_layers_number():
    assert component_of("encoder.layer.11.attention.self.query.weight") == "encoder.layer.*.attention.self.query.weight"
    assert component_of("decoder.block.3.layer.1.EncDecAttention.q.weight") == \
        "decoder.block.*.layer.1.EncDecAttention.q.weight"
    assert component_of("pooler.dense.bias") == "pooler.dense.bias" and layer_of("pooler.dense.bias") == ""
    assert layer_of("model.layers.3.mlp.up_proj.weight") == "model.layers.3"


# ---------------------------------------------------------------- whole tunes

@pytest.fixture(scope="module")
def runs(engine, tmp_path_factory) -> dict[str, Path]:
    """A tiny encoder that learned two labels in four ways, and a tiny writer."""
    folder = tmp_path_factory.mktemp("changes")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": f"It is {a}.", "label": b}) + "\n" for a, b in (
        ("dry", "no"), ("wet", "yes"), ("dust", "no"), ("rain", "yes"))))
    threads = torch.get_num_threads()
    for name, base, method, task in (("biases", "pico-encoder", "bitfit", "classify"), ("norms", "pico-encoder", "layernorm",
                                     "classify"), ("all", "pico-encoder", "full", "classify"), ("adapted", "pico-encoder",
                                     "lora:rank=2,target=attention-qv", "classify"), ("writer", "pico", "full", "pretrain")):
        head = {"head": "linear"} if task == "classify" else {}
        execute(Recipe({"name": name, "seed": 0, "steps": {
            "base": {"use": "base", "model": base}, "rows": {"use": "read", "path": str(folder / "rows.jsonl")},
            "tuned": {"use": "fit", "tasks": [{"data": "examples.all", "objective": task, **head}], "method": method,
                      "length": {"steps": 2}, "learning_rate": 1e-2, "dtype": "float32",
                      "inputs": {"base": "base", "examples": "rows"}}}}), folder / name, engine)
    torch.set_num_threads(threads)
    return {name: folder / name for name in ("biases", "norms", "all", "adapted", "writer")}


@pytest.fixture
def looked(runs, engine, make_ctx):
    """The findings of an audit of a tune, and the tensors that moved."""
    def look(name: str, spec: str):
        run, ctx = Run.open(runs[name]), make_ctx(f"{name}-{spec.partition(':')[0]}")
        found = build("audit", spec).measure(ctx, Subject(engine, run.step("base"), run.step("tuned")))
        path = ctx.folder / "tensors.jsonl"
        return found, {r["name"]: r for r in read_lines(path) if r["change"]} if path.exists() else {}

    return look


@pytest.mark.oracle(clause="change of each bias", against="the files of base and delta")
def test_biases_that_a_delta_names_are_those_that_moved(runs, looked):
    (found,), rows = looked("biases", "bias-change")
    run = Run.open(runs["biases"])
    delta = load_file(run.step("tuned").folder / "delta.safetensors")
    base = load_file(next(Path(run.step("base").meta["path"]).glob("*.safetensors")))
    wanted = {n: float(np.abs(t.numpy() - base[n].float().numpy()).mean()) for n, t in delta.items()}
    assert {n: r["change"] for n, r in rows.items()} == pytest.approx({n: v for n, v in wanted.items() if v}, rel=1e-4)
    assert len(rows) > 10 and found.right == pytest.approx(max(wanted.values()), rel=1e-4)
    (_,), parts = looked("biases", "component-change")
    assert parts.keys() == rows.keys(), "nothing else has moved"


def test_what_moved_is_what_was_trained(looked):
    _, norms = looked("norms", "component-change")
    assert norms and all("norm" in n.lower() for n in norms)
    (found,), moved = looked("adapted", "component-change")
    assert {r["component"] for r in moved.values()} == {
        f"encoder.layer.*.attention.self.{m}.weight" for m in ("query", "value")}
    assert found.extra["most_relative"] in {r["component"] for r in moved.values()}
    (none,), _ = looked("adapted", "bias-change")
    assert none.verdict == "not applicable" and "the change is zero" in none.detail
    (some,), few = looked("all", "component-change:terms=[query, word_embeddings]")
    assert some.extra["components"] == 3 and all("query" in n or "word_embeddings" in n for n in few)


def test_the_command_tells_layers_and_the_report_draws_bars(runs, tmp_path):
    made = auditing.recipe(runs["all"], audits=["component-change", "bias-change"])
    run = auditing.run(made, runs["all"], tmp_path / "out", exact=True)
    found = {f.name: f for f in auditing.audits_of(run)}
    said = auditing.sentence(found["audit/component-change"]) + found["audit/bias-change"].detail
    assert "largest relative change of a component" in said and "by layer: outside of layers" in said
    page = (run.folder / "report.html").read_text()
    assert "Change by component" in page and "Change of bias terms" in page and page.count('class="bar"') > 20


def test_what_can_not_be_compared_is_refused(runs, looked, engine, make_ctx, looking):
    (none,), _ = looked("writer", "bias-change")
    assert none.verdict == "not applicable" and none.detail == "this model has no bias terms"
    with pytest.raises(UserError, match=r"bias-change: no tensor is called queries. This model has: .*self.query.bias"):
        looked("all", "bias-change:terms=[queries]")
    with pytest.raises(UserError, match="There is no model here, only data"):
        build("audit", "component-change").measure(make_ctx("data"), Subject(engine))
    run = Run.open(runs["all"])
    (bare,) = build("audit", "component-change").measure(make_ctx("bare"), Subject(engine, run.step("base")))
    assert bare.verdict == "not applicable" and "nothing was tuned" in bare.detail
    packed = replace(run.step("base"), meta={**run.step("base").meta, "quantize": "nf4"})
    with pytest.raises(UserError, match="is held in 4 bits, whose rounding hides"):
        build("audit", "component-change").measure(make_ctx("packed"), Subject(engine, packed, run.step("tuned")))
    other = Subject(engine, run.step("base"), run.step("tuned"), reference=Run.open(runs["writer"]).step("base"))
    with pytest.raises(UserError, match=r"tensors differ in name or shape, first .* Name the base that the model was"):
        build("audit", "component-change").measure(make_ctx("other"), other)


def test_numbers_that_are_not_finite_are_named(monkeypatch, runs, engine, make_ctx):
    broken = ({"a.weight": torch.zeros(2)}, {"a.weight": torch.tensor([0.0, float("nan")])})
    sides = iter(broken)
    monkeypatch.setattr(component_change, "loaded", lambda *a: None)
    monkeypatch.setattr(component_change, "tensors_of", lambda model: next(sides))
    run = Run.open(runs["all"])
    with pytest.raises(UserError, match="a.weight holds numbers that are not finite. Tune again with a lower rate"):
        build("audit", "component-change").measure(make_ctx("nan"), Subject(engine, run.step("base"), run.step("tuned")))
