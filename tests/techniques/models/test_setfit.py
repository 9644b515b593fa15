"""SetFit: pairs of few labelled texts, their loss, the head that is solved for, and all of it together."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.engine.classification import classify
from luthier.engine.forward import Forward
from luthier.engine.models import load_base
from luthier.engine.steps.fit import Fit
from luthier.pipelines.steps.fit_head import FitHead
from luthier.techniques.data.text_pairs import TextPairs
from tests.contracts.workbench import encode, make_batch
from tests.recorded import recorded

WORDS = {"low": "module class object list", "high": "yield await lambda tuple", "mid": "scope block import raise"}


def text(n, label, words=None):
    rng = np.random.default_rng(n)
    said = words or " ".join(rng.choice(WORDS[label].split() if label in WORDS else ["name"], 6))
    return Example(f"t{n}", (Turn("user", (Part(said, name="text"),)),), task="classify", label=label, cluster=f"t{n}")


def texts(count, labels=("low", "high")):
    return [text(n, labels[n % len(labels)]) for n in range(count)]


def drawn(ctx, rows, **fields):
    return list(TextPairs(**fields).apply(iter(rows), ctx))


# --- the oracle's clauses --------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=208, clause=1, against="scikit-learn on the frozen encoder")
@pytest.mark.parametrize("labels", [("low", "high"), ("low", "high", "mid")])
@pytest.mark.parametrize("fields", [{}, {"balanced": True}, {"normalize": True, "inverse_penalty": 10.0}])
def test_without_pairs_it_is_the_frozen_encoder_with_logistic_regression(pico_encoder, make_ctx, labels, fields):
    sk = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    rows = [*texts(15, labels), text(99, labels[0])]
    examples = write_examples(make_ctx("examples").folder, {"train": rows})
    inputs = {"base": pico_encoder, "examples": examples}
    step, ctx = FitHead(head={"use": "logistic", "max_iterations": 5000, **fields}), make_ctx("head", inputs)
    made = step.run(inputs, ctx)
    assert [r.verdict for r in step.receipts(inputs, made, ctx)] == ["agrees"]
    model = ctx.engine.load(pico_encoder, made)
    encoder = load_base(pico_encoder)
    tested = texts(30, labels)[15:]

    def embedded(given):
        ids = [torch.tensor([encoder.tokenizer(e.turns[0].text)["input_ids"]]) for e in given]
        with torch.no_grad():
            states = torch.cat([encoder.module(input_ids=i).last_hidden_state.mean(1) for i in ids]).numpy()
        states = states.astype(float)  # in float32 scikit-learn itself stops short
        return states / np.linalg.norm(states, axis=1, keepdims=True) if fields.get("normalize") else states

    reference = sk.LogisticRegression(C=fields.get("inverse_penalty", 1.0), max_iter=10_000, tol=1e-10,
                                      class_weight="balanced" if fields.get("balanced") else None)
    reference.fit(embedded(rows), [e.label for e in rows])
    wanted = reference.predict_proba(embedded(tested))
    said = classify(model, made, tested, make_ctx("said"))
    assert list(reference.classes_) == model.labels["labels"]
    found = np.array([[p.probabilities[c] for c in reference.classes_] for p in said])
    assert np.abs(found - wanted).max() < 1e-4
    assert [p.label for p in said] == reference.predict(embedded(tested)).tolist()


@pytest.mark.oracle(seed=208, clause=2, against="the published counts")
@pytest.mark.parametrize(("fields", "count"), [
    ({"by": "per-text", "rounds": 5}, 2 * 5 * 12), ({"by": "per-class", "rounds": 5}, 2 * 5 * 3),
    ({"by": "unique"}, 12 * 11 // 2), ({"by": "unique", "self_pairs": True}, 12 * 13 // 2)])
def test_there_are_as_many_pairs_as_are_published(ctx, fields, count):
    rows = texts(12, ("low", "high", "mid"))
    pairs = drawn(ctx, rows, **fields)
    assert len(pairs) == count
    if fields["by"].startswith("per"):
        assert sum(p.label == 1.0 for p in pairs) == count // 2


@pytest.mark.oracle(seed=208, clause=2, against="setfit's sampler, written from its description")
@pytest.mark.parametrize("self_pairs", [False, True])
def test_unique_and_resampled_pairs_are_those_of_setfit(ctx, self_pairs):
    rows = texts(9, ("low", "low", "high"))
    row, column = np.triu_indices(9, k=0 if self_pairs else 1)
    wanted = sorted((int(i), int(j), float(rows[i].label == rows[j].label)) for i, j in zip(row, column, strict=True))
    number = {e.id: n for n, e in enumerate(rows)}

    def numbered(**fields):
        return sorted((*sorted(number[r] for r in p.meta["rows"]), p.label)
                      for p in drawn(ctx, rows, self_pairs=self_pairs, **fields))

    assert numbered(by="unique") == wanted
    alike = [p for p in wanted if p[2] == 1.0]
    other = [p for p in wanted if p[2] == 0.0]
    few, many = sorted((alike, other), key=len)
    less, more = numbered(by="undersample"), numbered(by="oversample")
    assert len(less) == 2 * len(few) == 2 * len(set(less) & set(few)) and set(less) <= set(wanted)
    assert len(more) == 2 * len(many) and set(more) == set(wanted)


@pytest.mark.oracle(seed=208, clause=2, against="setfit 1.2.0")
@pytest.mark.parametrize("record", recorded("setfit")["pairs"], ids=lambda r: f"{r['by']}-{''.join(r['labels'])}")
def test_pairs_are_as_many_as_setfit_s(ctx, record):
    """Its texts are pairs with themselves. Which are left out or drawn is chance; how often a pair comes is not."""
    rows = [text(n, label) for n, label in enumerate(record["labels"])]
    number = {e.id: n for n, e in enumerate(rows)}
    fields = {"rounds": record["setting"]["num_iterations"]} if record["by"] == "per-text" else {"self_pairs": True}
    found = Counter((*sorted(number[r] for r in p.meta["rows"]), p.label) for p in drawn(ctx, rows, by=record["by"], **fields))
    theirs = {tuple(pair): times for *pair, times in record["pairs"]}
    assert sum(found.values()) == record["count"] == sum(theirs.values())
    for alike in (1.0, 0.0):
        ours, wanted = ([times for pair, times in c.items() if pair[2] == alike] for c in (found, theirs))
        assert sum(ours) == sum(wanted)
        assert record["by"] == "per-text" or sorted(ours) == sorted(wanted)
    if record["by"] in ("unique", "oversample"):
        assert set(found) == set(theirs)


@pytest.mark.oracle(seed=208, clause=3, against="the labels themselves")
@pytest.mark.parametrize("by", ["per-text", "per-class", "unique", "oversample", "undersample"])
def test_pairs_are_alike_where_labels_are(ctx, by):
    rows = texts(10, ("low", "high", "mid"))
    label = {e.id: e.label for e in rows}
    pairs = drawn(ctx, rows, by=by, rounds=4)
    assert pairs and all((label[p.meta["rows"][0]] == label[p.meta["rows"][1]]) == (p.label == 1.0) for p in pairs)
    assert all(p.meta["rows"][0] != p.meta["rows"][1] for p in pairs)
    assert {p.label for p in pairs} == {0.0, 1.0}


@pytest.mark.oracle(seed=208, clause=4, against="by hand")
def test_the_loss_by_hand(pico_encoder):
    objective = build("objective", "cosine-similarity")
    assert objective.errors(torch.tensor([0.5, 0.5, -1.0]), torch.tensor([1.0, 0.0, 0.0])).tolist() == [0.25, 0.25, 1.0]
    margin = build("objective", "cosine-similarity:loss_kind=margin")
    assert margin.errors(torch.tensor([0.5, 0.75, 0.25]), torch.tensor([1.0, 0.0, 0.0])).tolist() == [0.125, 0.03125, 0.0]
    model = load_base(pico_encoder)
    rows = [Example("p", (Turn("user", (Part("module class", name="first"), Part("yield await", name="second"))),), label=y)
            for y in (1.0, 0.0)]
    batch = make_batch(encode(objective, model, rows), model)
    with torch.no_grad():
        total = objective.loss(Forward({"policy": model}), batch)["squared_error"]
        a, b = (model.module(input_ids=torch.tensor([model.tokenizer(t)["input_ids"]])).last_hidden_state.mean(1)
                for t in ("module class", "yield await"))
    cosine = float((a * b).sum() / a.norm() / b.norm())
    assert float(total) == pytest.approx((cosine - 1) ** 2 + cosine ** 2,
                                         abs=1e-5) and objective.count(batch)["squared_error"] == 2


@pytest.mark.oracle(seed=208, clause=4, against="sentence-transformers")
def test_the_loss_is_sentence_transformers(pico_encoder):
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    body = Transformer(pico_encoder.meta["path"], max_seq_length=256)
    theirs = st.SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension(), pooling_mode="mean")], device="cpu")
    theirs.eval()
    one, two, alike = ["module class", "yield"], ["list scope block", "await yield"], [1.0, 0.0]
    with torch.no_grad():
        wanted = losses.CosineSimilarityLoss(theirs)([theirs.tokenize(one), theirs.tokenize(two)], torch.tensor(alike))
    objective, model = build("objective", "cosine-similarity"), load_base(pico_encoder)
    rows = [Example("p", (Turn("user", (Part(a, name="first"), Part(b, name="second"))),), label=y)
            for a, b, y in zip(one, two, alike, strict=True)]
    batch = make_batch(encode(objective, model, rows), model)
    with torch.no_grad():
        total = objective.loss(Forward({"policy": model}), batch)["squared_error"] / 2
    assert float(total) == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.oracle(seed=208, clause=5, against="scikit-learn on given features")
def test_several_labels_a_row_are_one_against_the_rest():
    sk = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    from types import SimpleNamespace

    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5))
    given = ["|".join(n for n, on in (("a", r[0] > 0), ("b", r[1] + 0.3 * r[2] > 0)) if on) for r in x]
    head = build("head", "logistic:multi_label=true,inverse_penalty=2")
    labels = head.labels_of(given)
    module = head.build(SimpleNamespace(width=5), labels)
    head.fit(module, torch.from_numpy(x), given, labels)
    found = head.predict(module(torch.from_numpy(x).float())).detach().numpy()
    for n, name in enumerate(labels):
        reference = sk.LogisticRegression(C=2, max_iter=10_000, tol=1e-10).fit(x, [name in g.split("|") for g in given])
        assert np.abs(found[:, n] - reference.predict_proba(x)[:, 1]).max() < 1e-4


@pytest.mark.oracle(seed=208, clause=6, against="a second run")
def test_a_seed_is_a_classifier(pico_encoder, make_ctx):
    made = [whole(pico_encoder, make_ctx, f"{n}") for n in range(2)]
    assert made[0].identity == made[1].identity
    assert whole(pico_encoder, make_ctx, "other", seed=1).identity != made[0].identity


def whole(base, make_ctx, name, seed=0):
    """Pairs, a short training of them, and the head."""
    from luthier.core.rng import Rng

    def ctx_of(part, inputs=None):
        ctx = make_ctx(f"{name}/{part}", inputs)
        ctx.rng = Rng(seed).within(part)
        return ctx

    rows = texts(10)
    pairs = write_examples(ctx_of("pairs").folder, {"train": drawn(ctx_of("pairs"), rows, rounds=2)})
    examples = write_examples(ctx_of("examples").folder, {"train": rows})
    inputs = {"base": base, "pairs": pairs}
    fit = Fit(tasks=({"data": "pairs.train", "objective": "cosine-similarity"},), method="full", length={"epochs": 1},
              learning_rate=1e-3, batch_rows=16)
    ctx = ctx_of("fit", inputs)
    tuned = fit.run(inputs, ctx)
    assert [r.name for r in fit.receipts(inputs, tuned, ctx) if r.verdict == "differs"] == []
    inputs = {"base": base, "examples": examples, "tuned": tuned}
    return FitHead().run(inputs, ctx_of("head", inputs))


def test_a_tuned_encoder_brings_texts_of_a_label_together(pico_encoder, make_ctx):
    made = whole(pico_encoder, make_ctx, "x")
    ctx = make_ctx("said")
    model = ctx.engine.load(pico_encoder, made)
    said = classify(model, made, texts(40)[20:], ctx)
    assert sum(p.label == e.label for p, e in zip(said, texts(40)[20:], strict=True)) >= 18


def test_a_teacher_says_how_alike_texts_are(pico_encoder, make_ctx, engine):
    model = engine.load(pico_encoder)
    ctx = make_ctx("pairs", roles={"encoder": model})
    rows = [text(n, None, words) for n, words in enumerate(("module class", "yield await", "module class list"))]
    pairs = drawn(ctx, rows, by="teacher", rounds=3)
    seen = engine.embed(model, [r.turns[0].text for r in rows])
    number = {r.id: n for n, r in enumerate(rows)}
    assert len(pairs) == 9
    for pair in pairs:
        a, b = (number[r] for r in pair.meta["rows"])
        assert a != b and pair.label == pytest.approx(float(seen[a] @ seen[b]), abs=1e-6)


# --- bad input -------------------------------------------------------------------------------------------------------

def test_bad_rows_are_said(ctx, pico_encoder, make_ctx):
    with pytest.raises(UserError, match="at least two labels; all 4 have low"):
        drawn(ctx, texts(4, ("low",)))
    with pytest.raises(UserError, match="row t7 is an empty text"):
        drawn(ctx, [*texts(4), text(7, "low", " ")])
    said = []
    ctx.log = said.append
    alone = drawn(ctx, [*texts(4, ("low", "low")), text(9, "high")], rounds=1)
    assert "high has one text" in said[0] and any(p.meta["rows"] == ["t9", "t9"] and p.label == 1.0 for p in alone)
    (dropped,) = [d for d in drawn(ctx, [*texts(4), text(8, None)], rounds=1) if getattr(d, "reason", "")]
    assert dropped.id == "t8" and dropped.reason == "no label"
    with pytest.raises(UserError, match="the label 'a|b' looks like several"):
        build("head", "logistic").labels_of(["a|b", "c"])
    with pytest.raises(UserError, match=r"have 1 label\(s\); a classifier needs at least 2"):
        build("head", "logistic").labels_of(["a", "a"])
    with pytest.raises(UserError, match="'linear' is trained by gradients"):
        FitHead(head="linear").check()
    examples = write_examples(make_ctx("e").folder, {"train": [text(1, None)]})
    with pytest.raises(UserError, match="no row of 'train' has a label"):
        FitHead().run({"base": pico_encoder, "examples": examples}, make_ctx("h"))


@pytest.fixture
def ctx(make_ctx):
    return make_ctx("pairs")
