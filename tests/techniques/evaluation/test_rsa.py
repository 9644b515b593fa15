"""rsa and cka by closed form; the audit on a model and itself, and on one whose top alone was moved."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.core.finding import Finding
from luthier.engine.representations import cka, pooled, rsa, states_of
from luthier.engine.subjects import Subject
from luthier.techniques.evaluation import rsa as rsa_module
from tests.contracts.workbench import short_fit, training_data


def drawn(seed: int, rows: int = 100, width: int = 24) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.oracle(seed=52, clause=4, against="one")
def test_with_itself_it_is_one(pico, engine, make_ctx):
    assert rsa(drawn(0), drawn(0)) == pytest.approx(1, abs=1e-12) == cka(drawn(0), drawn(0))
    ctx = make_ctx("same")
    (found,) = build("audit", "rsa").measure(ctx, Subject(engine, pico, pico))
    assert found.right == 0 and found.interval == (0, 0) and found.verdict == "pass"
    model = engine.load(pico)
    layers = pooled(states_of(model, [[5, 6, 7, 8 + i] for i in range(9)]))
    assert [rsa(x, x) for x in layers] == pytest.approx([1.0] * len(layers))


@pytest.mark.oracle(seed=52, clause=5, against="an orthogonal rotation")
def test_a_rotation_changes_nothing():
    x = drawn(1)
    turned = x @ torch.linalg.qr(drawn(2, 24, 24))[0]
    assert rsa(x, turned) == pytest.approx(1, abs=1e-10) == cka(x, turned)
    longer = turned * torch.linspace(0.5, 3, len(x), dtype=torch.float64)[:, None]
    assert rsa(x, longer) == pytest.approx(1, abs=1e-10), "lengths are taken off"
    assert rsa(x, x @ drawn(3, 24, 24)) < 0.99, "another map does"


@pytest.mark.oracle(seed=52, clause=6, against="independence")
def test_independent_features_are_not_alike():
    for seed in range(10):
        assert abs(rsa(drawn(seed), drawn(seed + 100))) < 0.1


def test_it_is_the_correlation_of_cosines():
    from scipy.stats import pearsonr

    x, y = drawn(4, 12, 5), drawn(4, 12, 5) + drawn(5, 12, 5)
    sides = []
    for side in (x, y):
        sides.append([float(side[i] @ side[j] / side[i].norm() / side[j].norm()) for i in range(12) for j in range(i + 1, 12)])
    assert rsa(x, y) == pytest.approx(pearsonr(*sides)[0], abs=1e-10)


def test_states_are_those_of_the_whole_model(pico_encoder, engine):
    model = engine.load(pico_encoder)
    rows = [[5, 6, 7], [8, 9, 10, 11, 12]]
    found = states_of(model, rows)
    for row, states in zip(rows, found, strict=True):
        with torch.no_grad():
            said = model.module(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
        assert states.shape == (len(said), len(row), model.width)
        assert all(torch.allclose(own, one[0], atol=1e-5) for own, one in zip(states, said, strict=True))


def test_a_tune_of_the_top_changes_the_top(pico, engine, make_ctx, tmp_path):
    inputs = {"base": pico, "examples": training_data(make_ctx("rows"))}
    tuned = short_fit("decoder", method="full:freeze_bottom=1", learning_rate=0.1, length={"steps": 3}).run(
        inputs, make_ctx("tuned", inputs))
    (tmp_path / "texts.txt").write_text("".join(f"Line {i} has {'some ' * (i % 5)}words.\n" for i in range(20)))
    for by in ("rsa", "cka"):
        ctx = make_ctx(by)
        (found,) = build("audit", f"rsa:by={by},data={tmp_path / 'texts.txt'}").measure(ctx, Subject(engine, pico, tuned))
        assert isinstance(found, Finding) and [found.extra["layers"][n] for n in "01"] == pytest.approx([1, 1], abs=1e-9)
        assert found.extra["layers"]["2"] < 0.999 and found.interval[0] <= found.right <= found.interval[1]
        assert found.extra["freeze_bottom"] >= 1 and len(read_lines(ctx.folder / "layers.jsonl")) == 3


def test_the_jackknife_covers_a_known_similarity():
    x = drawn(7, 200)
    y = x + 0.5 * drawn(8, 200)
    low, high = rsa_module.jackknife(rsa, x, y)
    assert 0 < low < 1 - rsa(x, y) < high < 1 and math.isfinite(high)


def test_what_can_not_be_compared_is_refused(pico, engine, make_ctx, tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        build("audit", "rsa:data=nowhere.txt").check()
    (tmp_path / "bad.jsonl").write_text('{"words": "a"}\n')
    with pytest.raises(UserError, match="a line has no text"):
        build("audit", f"rsa:data={tmp_path / 'bad.jsonl'}").check()
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match="2 are too few, give at least 8"):
        build("audit", f"rsa:data={tmp_path / 'few.txt'}").measure(make_ctx("few"), Subject(engine, pico, pico))
