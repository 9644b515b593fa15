"""Layer freezing against the base bit for bit, full tuning, and logistic regression on features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.engine.forward import Forward
from luthier.engine.models import add_tuned, load_base
from tests.contracts import dummies
from tests.contracts.workbench import encode, examples, make_batch, make_loop, short_fit, training_data, tuned_logits


def prepared(base, spec="layer-freezing"):
    return build("method", spec).prepare(load_base(base), None)


def trained(model) -> set[str]:
    return {n for n, p in model.module.named_parameters() if p.requires_grad}


@pytest.mark.oracle(seed=11, clause=1, against="the base itself, bit for bit")
@pytest.mark.parametrize("architecture", ["decoder", "encoder", "encoder-decoder"])
def test_frozen_tensors_stay_bit_for_bit(architecture, bases, make_ctx):
    base = bases[architecture]
    inputs = {"base": base, "examples": training_data(make_ctx("examples"))}
    fit = short_fit(architecture, method="layer-freezing:train_last=1", regularizers=("dummy-spy",))
    artifact = fit.run(inputs, make_ctx("fit", inputs))
    own, tuned = (dict(m.module.named_parameters()) for m in (load_base(base), add_tuned(load_base(base), artifact)))
    moved = {n for n in own if not torch.equal(own[n], tuned[n])}
    top = {"decoder": ("layers.1.", "model.norm."), "encoder": ("layer.1.",),
           "encoder-decoder": ("block.1.", "final_layer_norm")}[architecture]
    assert moved and all(any(t in n for t in top) for n in moved)
    assert all(any(t in n for n in moved) for t in top), "all of the top moves"
    assert moved == {n for n in dummies.SPIED["moved"] if not n.startswith("examples.")}


@pytest.mark.oracle(seed=11, clause=2, against="full fine-tuning of the same seed")
def test_all_layers_and_the_embeddings_are_full_tuning(pico_encoder, make_ctx):
    curves = []
    for spec in ("layer-freezing:train_last=2", "full"):
        model = prepared(pico_encoder, spec)
        if spec != "full":
            assert trained(model) == {n for n, _ in model.module.named_parameters() if not n.startswith("embeddings")}
            model.module.embeddings.requires_grad_(True)
        torch.manual_seed(0)
        model.heads["task"] = build("head", "linear").build(model, ["thing", "word"])
        objective = build("objective", "classify")
        loop = make_loop(model, objective, encode(objective, model, examples(8)), make_ctx(f"{len(curves)}/fit"))
        loop.train()
        curves.append([r["loss"] for r in loop.curve])
    assert curves[0] == curves[1]


@pytest.mark.oracle(seed=11, clause=3, against="scipy: L2 logistic regression on the features of the base")
def test_a_head_alone_is_logistic_regression(pico_encoder):
    model = prepared(pico_encoder, "layer-freezing:train_last=0")
    model.module.pooler.requires_grad_(False)
    assert not trained(model)
    objective, strength = build("objective", "classify"), 0.1
    model.labels["task"] = ["thing", "word"]
    head = model.heads["task"] = build("head", "linear:dropout=0").build(model, ["thing", "word"])
    run = Forward({"policy": model})
    run.task = "task"
    batch = make_batch(encode(objective, model, examples(12)), model)
    weights = list(head.parameters())
    optimizer = torch.optim.LBFGS(weights, max_iter=300, tolerance_grad=1e-9, tolerance_change=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = sum(objective.loss(run, batch).values()) / sum(objective.count(batch).values())
        loss = loss + strength * sum(p.square().sum() for p in weights)
        loss.backward()
        return loss

    for _ in range(5):
        ours = float(optimizer.step(closure).detach())
    with torch.no_grad():
        features = run("policy", batch["input"]).pooled().double().numpy()
    labels = np.array([i % 2 for i in range(12)])

    def logistic(flat):
        w, b = flat[:-2].reshape(2, -1), flat[-2:]
        scores = features @ w.T + b
        top = scores.max(1, keepdims=True)
        log_sum = top[:, 0] + np.log(np.exp(scores - top).sum(1))
        return (log_sum - scores[np.arange(12), labels]).mean() + strength * (flat ** 2).sum()

    theirs = minimize(logistic, np.zeros(2 * features.shape[1] + 2), method="L-BFGS-B", options={"maxfun": 10 ** 6})
    assert ours == pytest.approx(theirs.fun, abs=1e-3)
    flat = torch.cat([p.detach().flatten() for p in weights]).double().numpy()
    assert np.abs(flat - theirs.x).max() <= 1e-3


@pytest.mark.oracle(seed=11, clause=4, against="the same training without kept states")
def test_kept_and_computed_states_give_the_same_logits(pico, make_ctx):
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    left = {}
    for mode in ("on", "off"):
        fit = short_fit("decoder", method="layer-freezing", cache_frozen=mode, length={"steps": 4})
        artifact = fit.run(inputs, make_ctx(f"{mode}/fit", inputs))
        left[mode] = (tuned_logits(add_tuned(load_base(pico), artifact)),
                      [r["loss"] for r in read_lines(artifact.folder / "curve.jsonl")])
    assert left["on"][1] == pytest.approx(left["off"][1], abs=1e-6)
    assert (left["on"][0] - left["off"][0]).abs().max() <= 1e-4, "rounding, after four steps of Adam"


@pytest.mark.parametrize(("written", "layers"), [("0.25", 1), ("25%", 1), ("0.5", 1), ("51%", 2), ("1", 1), ("2", 2),
                                                 ("100%", 2), ("0", 0), ("2.0", 2)])
def test_a_number_or_a_share_of_the_layers(written, layers, pico):
    model = prepared(pico, f"layer-freezing:train_last={written}")
    found = {n.split(".")[2] for n in trained(model) if "layers." in n}
    assert len(found) == layers and "model.norm.weight" in trained(model)
    assert not any("embed" in n or "lm_head" in n for n in trained(model))


@pytest.mark.parametrize(("written", "why"), [("3", "train_last = 3, but pico has 2 layers"), ("-1", "train_last"),
                                              ("2.5", "neither a share"), ("half", "train_last"), ("x%", "is no share")])
def test_what_makes_no_sense_is_refused(written, why, pico):
    with pytest.raises(UserError, match=why):
        prepared(pico, f"layer-freezing:train_last={written}")


def test_a_share_keeps_its_meaning_when_written_and_read(pico):
    for written in (0.25, "25%", 1.0, 1, "100%"):
        part = build("method", {"use": "layer-freezing", "train_last": written})
        again = build("method", part.to_dict())
        assert again == part and again.identity == part.identity
    whole, one = (build("method", {"use": "layer-freezing", "train_last": n}) for n in ("100%", 1))
    assert len({n.split(".")[2] for n in trained(whole.prepare(load_base(pico), None)) if "layers." in n}) == 2
    assert len({n.split(".")[2] for n in trained(one.prepare(load_base(pico), None)) if "layers." in n}) == 1
    assert whole.identity != one.identity


def test_shared_layers_are_refused_by_name(pico_encoder):
    from transformers import AlbertConfig, AlbertModel

    model = load_base(pico_encoder)
    model.module = AlbertModel(AlbertConfig(vocab_size=60, hidden_size=16, embedding_size=8, intermediate_size=24,
                                            num_attention_heads=2, num_hidden_layers=3)).eval()
    with pytest.raises(UserError, match="layer-freezing finds no stack of layers"):
        build("method", "layer-freezing").prepare(model, None)
