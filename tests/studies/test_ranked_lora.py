"""ranked-lora and found-ranks: as many ranks as were found, where they are said to lie; agreement is Kendall's tau."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import kendalltau

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_lines, write_json
from luthier.core.rng import Rng
from luthier.engine.models import load_base
from luthier.studies._worlds.ranked_lora import dealt
from luthier.techniques.methods._shared import lora_layers, targeted


def told(folder, layers, ranks):
    """A search that found these ranks."""
    folder.mkdir()
    write_json(folder / "ranks.json", {n: {"rank": r, "selection": [0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]}
                                       for n, r in zip(layers, ranks, strict=True)})
    return SimpleNamespace(folder=folder)


@pytest.mark.parametrize("how", ["found", "even", "random"])
def test_ranks_lie_where_they_should(how, pico, tmp_path):
    layers = list(targeted("x", load_base(pico), "attention-qv"))
    ranks = [8, 1, 3, 2][:len(layers)] + [1] * (len(layers) - 4)
    ctx = SimpleNamespace(inputs={"search": told(tmp_path / "search", layers, ranks)}, rng=Rng(0))
    model = build("method", f"ranked-lora:of=search,how={how},alpha=16").prepare(load_base(pico), ctx)
    made = lora_layers(model.module)
    found = {n: layer.lora_A["default"].weight.shape[0] for n, layer in made.items()}
    assert set(found) == set(layers) and sum(found.values()) == sum(ranks)
    assert all(layer.scaling["default"] == pytest.approx(16 / found[n]) for n, layer in made.items())
    if how == "found":
        assert [found[n] for n in layers] == ranks
    elif how == "even":
        assert max(found.values()) - min(found.values()) <= 1
    else:
        assert min(found.values()) >= 1 and max(found.values()) <= 8 and [found[n] for n in layers] != ranks


def test_what_is_dealt_by_chance_is_not_always_the_same_and_keeps_its_bounds():
    layers = [f"l{i}" for i in range(12)]
    draws = [dealt(layers, 40, 8, np.random.default_rng(n)) for n in range(50)]
    assert len({tuple(d.values()) for d in draws}) > 40
    assert all(sum(d.values()) == 40 and min(d.values()) >= 1 and max(d.values()) <= 8 for d in draws)
    assert sum(dealt(layers, 5, 8, np.random.default_rng(0)).values()) == 5, "fewer ranks than layers"
    assert set(dealt(layers, 96, 8, np.random.default_rng(0)).values()) == {8}


def test_ranks_of_other_layers_are_refused(pico, tmp_path):
    method = build("method", "ranked-lora:of=search")
    with pytest.raises(UserError, match="of = 'search' is no input with ranks; inputs: base"):
        method.prepare(load_base(pico), SimpleNamespace(inputs={"base": SimpleNamespace(folder=tmp_path)}, rng=Rng(0)))
    other = SimpleNamespace(inputs={"search": told(tmp_path / "search", ["a.query"], [3])}, rng=Rng(0))
    with pytest.raises(UserError, match=r"'search' has ranks for 1 layers \(a.query, ...\); here are"):
        method.prepare(load_base(pico), other)


def test_agreement_of_two_searches_is_kendalls_tau(tmp_path, make_ctx):
    layers, one, two = list("abcdef"), [6, 2, 5, 1, 3, 4], [5, 1, 6, 3, 2, 4]
    inputs = {n: told(tmp_path / n, layers, ranks) for n, ranks in (("search", one), ("again", two))}
    step, ctx = build("step", "found-ranks"), make_ctx("ranks")
    artifact = step.run(inputs, ctx)
    lines = read_lines(artifact.folder / "scores.jsonl")
    pairs = [r["value"] for r in lines if r["metric"] == "agreement"]
    assert len(pairs) == 15 and sum(pairs) / 15 == pytest.approx(kendalltau(one, two).statistic)
    assert [r["value"] for r in lines if r["metric"] == "rank"] == one
    assert all(r["value"] == pytest.approx(0.3 - 1 / 8) for r in lines if r["metric"] == "lead")
    assert [r.verdict for r in step.receipts(inputs, artifact, ctx)] == ["agrees"]
