"""Split-and-privatize: a border that only bytes of states cross, and noise of the stated law in front of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load
from scipy import stats

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.rng import Rng
from luthier.engine import splitting
from luthier.engine.models import add_tuned, load_base
from luthier.engine.splitting import Privatizer, Split, eta_for, nearest
from luthier.techniques.methods._contributing import by_labels
from luthier.techniques.methods.split_and_privatize import FILE, _table
from tests.contracts.workbench import encode, examples, make_loop, short_fit, training_data


def asked(model, ids):
    with torch.no_grad():
        named = {} if model.architecture == "encoder" else {"use_cache": False}
        out = model.module(input_ids=ids, attention_mask=torch.ones_like(ids), **named)
    return out.last_hidden_state if model.architecture == "encoder" else out.logits


@pytest.fixture
def table():
    return torch.from_numpy(np.random.default_rng(3).normal(size=(60, 8))).float()


def private(table, eta, **rest):
    return Privatizer(table, frozenset({0, 1}), eta, Rng(5), **rest)


# --- the oracle's clauses --------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=2, clause=1, against="the model without a border")
@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
@pytest.mark.parametrize("labels", ["customer", "vendor"])
def test_a_border_without_noise_changes_nothing(bases, architecture, labels):
    ids = torch.tensor([[4, 9, 77, 30, 2], [8, 8, 150, 4, 3]])
    whole = asked(load_base(bases[architecture]), ids)
    for layer in (0, 1):
        model = load_base(bases[architecture])
        split = Split(model, layer, None, labels)
        assert torch.allclose(asked(model, ids), whole, atol=1e-5)
        assert split.wire.count == (2 if labels == "customer" else 1) and split.wire.bytes > ids.numel() * 64 * 4
        split.remove()
        assert torch.equal(asked(model, ids), whole)


@pytest.mark.oracle(seed=2, clause=2, against="closed form")
def test_without_noise_worth_the_name_every_token_is_itself(table):
    ids = list(range(60))
    assert private(table, 1e9).transform(ids) == ids
    twin = table.clone()
    twin[40] = twin[12]
    assert private(twin, 1e9).transform(ids) == [12 if i == 40 else i for i in ids], "of twins the first is found"


@pytest.mark.oracle(seed=2, clause=3, against="scipy's Gamma by Kolmogorov and Smirnov")
def test_the_radius_has_the_gamma_law(table):
    d, eta = table.shape[1], 2.5
    radius = private(table, eta).noise([7] * 20_000).norm(dim=1).numpy()
    assert radius.mean() == pytest.approx(d / eta, abs=4 * np.sqrt(d) / eta / np.sqrt(20_000))
    assert radius.var() == pytest.approx(d / eta ** 2, rel=0.06)
    assert stats.kstest(radius, stats.gamma(d, scale=1 / eta).cdf).pvalue > 0.01
    assert stats.kstest(radius, stats.gamma(d, scale=1.05 / eta).cdf).pvalue < 1e-6, "5 % would be seen"


@pytest.mark.oracle(seed=2, clause=4, against="moments of the uniform law on the sphere")
def test_the_direction_is_uniform(table):
    way = private(table, 1.0).noise([7] * 20_000)
    way = (way / way.norm(dim=1, keepdim=True)).numpy()
    d = way.shape[1]
    assert np.abs(way.mean(0)).max() < 4 / np.sqrt(d * 20_000)
    assert np.abs(np.cov(way.T) - np.eye(d) / d).max() < 0.01
    # A coordinate squared has the Beta law (1/2, (d - 1)/2).
    assert stats.kstest(way[:, 0] ** 2, stats.beta(0.5, (d - 1) / 2).cdf).pvalue > 0.01


@pytest.mark.oracle(seed=2, clause=6, against="the bytes themselves")
def test_what_crosses_are_states_and_masks_never_ids_or_labels(pico_encoder, make_ctx, monkeypatch):
    monkeypatch.setattr(splitting.Wire, "__init__", lambda self, **k: _kept(self))
    inputs = {"base": pico_encoder, "examples": training_data(make_ctx("examples"))}
    fit = short_fit("encoder", method={"use": "split-and-privatize", "change": 0.4}, length={"steps": 2})
    fit.run(inputs, make_ctx("fit", inputs))
    wires = [w for w in KEPT if w.payloads]
    assert wires and {m["direction"] for w in wires for m in w.messages} == {"down", "up"}
    for wire in wires:
        for payload in wire.payloads:
            tensors = load(payload)
            assert set(tensors) in ({"states", "mask"}, {"states"}, {"gradient"})
            for name, tensor in tensors.items():
                whole = (tensor == tensor.round()).all()
                assert (name == "mask" and set(tensor.unique().tolist()) <= {0, 1}) or (tensor.is_floating_point() and
                                                                                        (not whole or not tensor.any()))


@pytest.mark.oracle(seed=2, clause=6, against="the bytes themselves")
def test_labels_cross_where_they_are_the_vendors(pico_encoder, make_ctx, monkeypatch):
    monkeypatch.setattr(splitting.Wire, "__init__", lambda self, **k: _kept(self))
    inputs = {"base": pico_encoder, "examples": training_data(make_ctx("examples"))}
    short_fit("encoder", method={"use": "split-and-privatize", "labels": "vendor"}, length={"steps": 1}).run(
        inputs, make_ctx("fit", inputs))
    sent = [load(p) for w in KEPT for p in w.payloads]
    (labels,) = [t["label"] for t in sent if "label" in t]
    assert sorted(labels.tolist()) == [0] * 4 + [1] * 4 and not any("gradient" in t for t in sent)


KEPT: list[splitting.Wire] = []


def _kept(wire):
    wire.keep, wire.messages, wire.payloads, wire.most, wire.bytes, wire.count = True, [], [], 10_000, 0, 0
    KEPT.append(wire)


@pytest.fixture(autouse=True)
def nothing_kept():
    KEPT.clear()


@pytest.mark.oracle(seed=2, clause=7, against="equal draws")
def test_protecting_nobody_is_the_same_noise(table):
    none = torch.zeros(60, dtype=torch.bool)
    some = none.clone()
    some[9] = True
    ids = [4, 9, 30, 9, 2]
    plain = private(table, 3.0).noise(ids)
    assert torch.equal(plain, private(table, 3.0, protected=none).noise(ids))
    scaled = private(table, 3.0, protected=some, eta_high=30.0).noise(ids)
    assert torch.allclose(scaled[[1, 3]], plain[[1, 3]] / 10) and torch.equal(scaled[[0, 2, 4]], plain[[0, 2, 4]])
    kept = private(table, 1e-3, protected=some).transform(ids)
    assert kept[1] == kept[3] == 9 and kept != ids


@pytest.mark.oracle(seed=2, clause=7, against="equal draws")
def test_cti_top_of_0_trains_the_same_as_cti_off(pico_encoder, make_ctx):
    inputs = {"base": pico_encoder, "examples": training_data(make_ctx("examples"))}
    made = [short_fit("encoder", method={"use": "split-and-privatize", **m}, length={"steps": 2}).run(
        inputs, make_ctx("fit", inputs) if n == 0 else make_ctx("b/fit", inputs)) for n, m in
        enumerate(({"cti": "off"}, {"cti": "protect", "cti_top": 0.0}))]
    one, two = (json.loads((a.folder / FILE).read_text()) for a in made)
    assert one["eta"] == two["eta"] and one["protected"] == two["protected"] == []
    left, right = (add_tuned(load_base(pico_encoder), a) for a in made)
    ids = torch.tensor([[5, 9, 77, 30, 12]])
    assert torch.equal(asked(left, ids), asked(right, ids))


# --- the parts --------------------------------------------------------------------------------------------------------

def test_the_nearest_row_is_brute_forces(table):
    points = torch.from_numpy(np.random.default_rng(1).normal(size=(50, 8)))
    legal = torch.ones(60, dtype=torch.bool)
    legal[5:20] = False
    wanted = [min((i for i in range(60) if legal[i]), key=lambda i: float((table[i].double() - p).norm())) for p in points]
    assert nearest(points, table, legal).tolist() == wanted


@pytest.mark.parametrize("change", [0.1, 0.35, 0.8])
def test_eta_is_where_so_many_tokens_change(table, change):
    legal = torch.ones(60, dtype=torch.bool)
    ids = np.random.default_rng(2).integers(0, 60, 400).tolist()
    eta = eta_for(change, ids, table, legal, Rng(1)("eta"))
    draw = Rng(1)("eta")
    radius = torch.from_numpy(draw.standard_gamma(8, size=400))
    way = splitting.directions(draw, 400, 8)

    def share(eta):
        at = table[ids].double() + radius[:, None] / eta * way
        return float((nearest(at, table, legal) != torch.tensor(ids)).double().mean())

    assert share(eta) == pytest.approx(change, abs=1 / 400)
    low, high = 1e-3, 1e6  # the card's way: bisection
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if share(middle) > change else (low, middle)
    assert round(400 * abs(share(low) - share(eta))) <= 1, "at most the token at the threshold"
    fixed = torch.tensor(ids) < 30
    with pytest.raises(UserError, match="the others are protected"):
        eta_for(0.9, ids, table, legal, Rng(1)("eta"), fixed)


def test_special_tokens_are_neither_replaced_nor_produced(pico_encoder, table):
    made = private(table, 1e-2).transform([0, 1, 30, 31, 0] * 40)
    assert [i for i in made if i in (0, 1)] == [0, 1, 0] * 40 and set(made) - {0, 1}
    model = load_base(pico_encoder)
    _, special, legal = _table(model)
    assert set(model.tokenizer.all_special_ids) <= special and not legal[list(special)].any()


def test_use_draws_the_noise_of_training_and_other_texts_their_own(pico_encoder, make_ctx):
    inputs = {"base": pico_encoder, "examples": training_data(make_ctx("examples"))}
    fit = short_fit("encoder", method={"use": "split-and-privatize", "change": 0.5, "cti": "protect"})
    ctx = make_ctx("fit", inputs)
    made = fit.run(inputs, ctx)
    assert [r.name for r in fit.receipts(inputs, made, ctx) if r.verdict == "differs"] == []
    one, two = (add_tuned(load_base(pico_encoder), made).border for _ in range(2))
    ids = torch.arange(10, 40)[None]
    assert torch.equal(one.replaced(ids), two.replaced(ids)) and not torch.equal(one.replaced(ids), ids)
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], 1)
    mask = (torch.arange(33) < 30).long()[None]
    assert torch.equal(one.replaced(padded, mask)[:, :30], one.replaced(ids)), "padding draws nothing"
    again = one.replaced(ids + 1)
    assert not torch.equal(again - 1, one.replaced(ids)) and two.privatizer.protected.any()
    one.round = 1
    assert not torch.equal(one.replaced(ids), two.replaced(ids)), "each_epoch draws anew"


def test_scores_of_tokens_by_hand():
    texts = [([1, 2], "a"), ([1, 3], "b"), ([1, 2], "a")]
    odds = by_labels(texts, 10, "log-odds")
    assert odds[2] == pytest.approx((np.log(3 / 14) - np.log(1 / 12)) * np.sqrt(2))
    assert odds[1] == pytest.approx((np.log(2 / 12) - np.log(3 / 14)) * np.sqrt(3)) or odds[1] < odds[2]
    chi = by_labels(texts, 10, "chi-square")
    assert chi[2] == pytest.approx(stats.chi2_contingency([[2, 0], [0, 1]], correction=False)[0]) and chi[1] == 0


def test_scores_by_gradient_are_those_of_a_loop_by_hand(pico_encoder, make_ctx):
    from luthier.techniques.methods._contributing import by_gradient

    model = load_base(pico_encoder)
    model.module.requires_grad_(True)
    model.labels["task"] = ["thing", "word"]
    torch.manual_seed(0)
    model.heads["task"] = build("head", "linear:dropout=0").build(model, ["thing", "word"])
    objective = build("objective", "classify")
    features = encode(objective, model, examples(4))
    loop = make_loop(model, objective, features, make_ctx("loop"), batch_rows=4, micro_rows=4)
    model.module.eval()
    found = by_gradient(model, loop.ctx)
    embedding, sums = model.module.get_input_embeddings(), {}
    for row in features:
        states = embedding(torch.tensor([row["input"].ids])).detach().requires_grad_()
        pooled = model.module(inputs_embeds=states).last_hidden_state.mean(1)
        loss = torch.nn.functional.cross_entropy(model.heads["task"](pooled), torch.tensor([row["label"]])) / 4
        (gradient,) = torch.autograd.grad(loss, states)
        for token, worth in zip(row["input"].ids, (gradient * states)[0].sum(-1).abs().tolist(), strict=True):
            sums.setdefault(token, []).append(worth)
    assert found.keys() == sums.keys()
    assert all(found[t] == pytest.approx(np.mean(sums[t]), rel=1e-3, abs=1e-9) for t in found)


# --- bad input --------------------------------------------------------------------------------------------------------

def test_bad_settings_are_refused_by_name(pico_encoder, pico_encoder_decoder, make_ctx, table):
    with pytest.raises(UserError, match="eta"):
        build("method", "split-and-privatize:eta=0")
    with pytest.raises(UserError, match="eta = 0: it must be above 0"):
        private(table, 0)
    for spec, said in (({"layer": 2}, "split at layer 2: pico-encoder has 2 layers; legal: 0 to 1"),
                       ({"eta": 3.0}, "eta and change are both given"),
                       ({"method": "full"}, "method 'full' leaves a model")):
        with pytest.raises(UserError, match=said):
            build("method", {"use": "split-and-privatize", **spec}).prepare(load_base(pico_encoder), None)
    with pytest.raises(UserError, match="not one stack"):
        build("method", "split-and-privatize").prepare(load_base(pico_encoder_decoder), None)


def test_noise_is_drawn_from_a_secret_where_there_is_one(make_ctx, monkeypatch):
    said = []
    ctx = make_ctx("x", log=said.append)
    method = build("method", "split-and-privatize:key_variable=CUSTOMER_SECRET")
    monkeypatch.delenv("CUSTOMER_SECRET", raising=False)
    with pytest.raises(UserError, match="key_variable: CUSTOMER_SECRET is not set"):
        method._secret(ctx)
    monkeypatch.setenv("CUSTOMER_SECRET", "one")
    one = method._secret(ctx)
    monkeypatch.setenv("CUSTOMER_SECRET", "two")
    assert method._secret(ctx) != one and "one" not in one and not said
    assert build("method", "split-and-privatize")._secret(ctx) == "" and "name a secret" in said[0]


def test_a_shared_table_is_said(pico, make_ctx):
    model, said = load_base(pico), []
    model.module.lm_head.weight = model.module.get_input_embeddings().weight
    ctx = make_ctx("x", log=said.append)
    build("method", "split-and-privatize").prepare(model, ctx)
    assert any("the vendor holds it too" in line for line in said)
