"""The probe of methods against what can be worked out for LoRA, norms and a prompt, and the page that keeps its tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from luthier.core.errors import UserError
from luthier.pipelines import methods_probe
from luthier.pipelines.methods_probe import TOKENS, Row, markdown, names, shown, unknown_share
from luthier.techniques.methods.peft import WORKS, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods-probe.md"


@pytest.fixture(scope="module")
def bench(engine, pico, tmp_path_factory):
    return methods_probe.Bench(engine, "decoder", pico, tmp_path_factory.mktemp("bench"))


@pytest.mark.oracle(clause="what a method costs", against="closed form: products of LoRA's factors")
def test_lora_costs_what_its_factors_say(bench, pico):
    from luthier.engine.models import load_base
    from luthier.techniques.methods._shared import linear_names

    sides = linear_names(load_base(pico)).values()
    row = bench.row("lora")
    numbers = sum(8 * (i + o) for i, o in sides)
    assert row.cells["trained"] == numbers and row.cells["share"] == numbers / load_base(pico).parameters()
    # Two products of rank 8 a layer and token, against those of the base, its attention and its vocabulary.
    config = load_base(pico).module.config
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    attention = 2 * config.num_hidden_layers * heads * 2 * TOKENS * TOKENS * width
    base = 2 * TOKENS * (sum(i * o for i, o in sides) + config.hidden_size * config.vocab_size) + attention
    assert bench.work == base
    assert row.cells["work"] == pytest.approx(2 * TOKENS * numbers / base)
    assert row.cells["optimizer"] == 2 * 4 * numbers, "two float32 moments a number"
    assert row.cells["step"] == 1.0 and row.cells["quantised"] is True
    assert row.cells["mergeable"] is True and row.cells["stackable"] is True


def test_norms_cost_nothing_and_a_prompt_can_not_be_merged(bench):
    norms, prompt = bench.row("layernorm"), bench.row("prompt-tuning")
    assert norms.cells["work"] == 0 and norms.cells["mergeable"] is True and norms.cells["quantised"] is False
    assert prompt.cells["work"] > 0 and prompt.cells["mergeable"] is False and prompt.cells["quantised"] is True
    assert prompt.cells["trained"] == 10 * 64


@pytest.fixture(scope="module")
def encoders(engine, pico_encoder, tmp_path_factory):
    return methods_probe.Bench(engine, "encoder", pico_encoder, tmp_path_factory.mktemp("encoders"))


@pytest.mark.oracle(clause="what a method costs", against="closed form: products of the layers that are left")
def test_a_base_that_was_cut_is_cut_again_before_it_is_measured(encoders):
    """Heads, neurons and ranks are gone: less work than the base, no weights of its kind, and no two at once."""
    from torch import nn

    row = encoders.row("light-peft")
    assert row.cells["mergeable"] is False and row.cells["stackable"] is False
    model = encoders.loaded(encoders.folder / "light-peft")
    layers = {n: m for n, m in model.module.named_modules() if type(m) is nn.Linear and ".pooler" not in n}
    products = 2 * TOKENS * sum(m.in_features * m.out_features for m in layers.values())
    queries = sum(m.out_features for n, m in layers.items() if n.removesuffix(".base_layer").endswith(".query"))
    assert queries < model.module.config.num_hidden_layers * model.module.config.hidden_size
    pooled = [m for n, m in model.module.named_modules() if type(m) is nn.Linear and ".pooler" in n]
    pooler = sum(2 * m.in_features * m.out_features for m in pooled)  # of one token
    assert row.cells["work"] * encoders.work + encoders.work == pytest.approx(
        products + pooler + 2 * 2 * TOKENS * TOKENS * queries, rel=1e-6)
    assert -0.5 < row.cells["work"] < 0


def test_adapters_that_a_method_combines_are_made_first_and_a_refusal_is_kept(bench):
    assert set(bench.method("meteora").routes) == {"first", "second"}
    refused = bench.row("bitfit")
    assert "bitfit has nothing to train: pico has no bias terms" in refused.refused and not refused.cells
    text = "\n".join(markdown([refused]))
    assert "- `bitfit` on the decoder: bitfit has nothing to train" in text


def test_what_can_not_be_measured_is_unknown_and_counted(bench, monkeypatch):
    monkeypatch.setattr(methods_probe.Bench, "stackable", lambda *given: 1 / 0)
    row = bench.row("layernorm")
    assert row.cells["stackable"] == "unknown (ZeroDivisionError)" and shown(row)[5] == "unknown (ZeroDivisionError)"
    assert unknown_share([row]) == 1 / 8 and unknown_share([Row("x", "decoder", "no")]) == 0


def test_eight_bit_layers_are_left_as_they_are_or_it_is_seen(engine, pico):
    model = engine.fresh(pico)
    kept = methods_probe.in_eight_bits(model)
    plain = methods_probe.said(engine.fresh(pico))
    assert len(kept) == 14 and (methods_probe.said(model) - plain).abs().max() < 0.1 * plain.abs().max()
    with pytest.raises(RuntimeError):
        kept[0][0].weight.requires_grad_(True)


def test_the_page_has_every_method_and_hardly_an_unknown_cell():
    page = PAGE.read_text(encoding="utf-8")
    own, _, of_peft = page.partition("## Methods of PEFT")
    rows = [line.strip("| ").split(" | ") for line in own.splitlines() if line.startswith("| ")][1:]
    refused = re.findall(r"^- `([a-z-]+)` on the ", own, re.MULTILINE)
    assert {r[0] for r in rows} | set(refused) == set(names()), "python scripts/probe_methods.py"
    assert len(rows) + len(refused) == 3 * len(names())
    cells = [c for r in rows for c in r[2:]]
    assert sum("unknown" in c for c in cells) <= 0.1 * len(cells)
    listed = {line.strip("| ").split(" | ")[0]: line.count(f"| {WORKS} ")
              for line in of_peft.splitlines() if line.startswith("| ")}
    for name, found in table()["types"].items():
        assert listed[name] == sum(c == WORKS for c in found.values()), "python scripts/probe_methods.py"


def test_the_command_measures_methods_only():
    from luthier.cli.list import command

    with pytest.raises(UserError, match="--probe measures methods: luthier list methods --probe, not metrics"):
        command("metrics", probe=True)
