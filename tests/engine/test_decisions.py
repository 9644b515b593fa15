"""Decision transformers: bins, rows of steps, and what stands in the places of returns and states."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from luthier.core.artifact import seal
from luthier.core.component import build
from luthier.core.example import Example, Part, Turn
from luthier.core.kinds import DroppedRow
from luthier.engine import decisions, routing
from luthier.engine.forward import Forward
from luthier.engine.models import load_base
from luthier.engine.rendering import renderer
from luthier.studies._worlds.steering import Steering
from tests.contracts.workbench import make_batch


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A decision transformer with random weights."""
    folder = tmp_path_factory.mktemp("decisions") / "model"
    Steering(width=16, layers=1).blank(folder)
    return seal("model", folder, name="tiny", note="random weights", path=str(folder), architecture="decoder")


def row(steps: int = 3, seed: int = 0, **changed) -> Example:
    draw = np.random.default_rng(seed)
    parts = {"states": draw.normal(size=(steps, 4)).tolist(), "returns": draw.normal(size=steps).tolist(),
             "actions": draw.integers(0, decisions.BINS, (steps, 2)).tolist(), **changed}
    turns = [Turn("user", tuple(Part(parts[n], "array", n) for n in ("states", "returns") if parts[n] is not None))]
    return Example("r", (*turns, Turn("assistant", (Part(parts["actions"], "array", "actions"),), target=True)))


def test_bins_are_even_and_their_middles_stay_in_them():
    bins = np.arange(decisions.BINS)
    assert (decisions.to_bins(decisions.from_bins(bins)) == bins).all()
    assert decisions.to_bins(np.array([-1.0, -2.0, 1.0, 3.0, 0.0])).tolist() == [0, 0, 63, 63, 32]
    assert decisions.from_bins(np.array([0]))[0] == pytest.approx(-1 + 1 / 64)


def test_a_row_is_return_state_and_action_in_turn_and_actions_are_learned(tiny):
    model = load_base(tiny)
    tokens = renderer(model, 128).tokens(row())
    words = model.tokenizer.convert_ids_to_tokens(tokens.ids)
    actions = [n for t in row().turns for p in t.parts if p.name == "actions" for step in p.value for n in step]
    assert words[0::4] == ["<return>"] * 3 and words[1::4] == ["<state>"] * 3
    assert [w for w, t in zip(words, tokens.targets, strict=True) if t] == [f"<action {n}>" for n in actions]
    assert tokens.pieces["states"].shape == (3, 4) and tokens.pieces["returns"].shape == (3, 1)


@pytest.mark.oracle(clause="decision transformer's inputs", against="the inputs of plain GPT-2, laid out by hand")
def test_states_and_returns_stand_in_their_tokens_places_row_by_row(tiny):
    model = load_base(tiny)
    render = renderer(model, 128)
    given = [row(3, 1), row(2, 2), row(5, 3)]
    features = [{"input": render.tokens(e)} for e in given]
    together = Forward({"policy": model})("policy", make_batch(features, model)["input"]).logits()
    trunk, found = model.module.transformer, []
    for feature in features:
        tokens, embeds, step = feature["input"], [], 0
        for place, i in enumerate(tokens.ids):
            if place % 4 == 0:
                embeds.append(trunk.of_return(torch.tensor(tokens.pieces["returns"][step])))
            elif place % 4 == 1:
                embeds.append(trunk.of_state(torch.tensor(tokens.pieces["states"][step])))
                step += 1
            else:
                embeds.append(trunk.wte.weight[i])
        scores = model.module(inputs_embeds=torch.stack(embeds)[None]).logits[0]
        # `logits` gives those that learned tokens are foretold by.
        found.append(scores[[n - 1 for n, t in enumerate(tokens.targets) if t]])
    assert torch.allclose(together, torch.cat(found), atol=1e-5)


@pytest.mark.oracle(seed=129, clause=3, against="the mean of the embedded states by hand; plans and rows of other lengths")
def test_a_pools_query_sees_states_only(tiny):
    model = load_base(tiny)
    render = renderer(model, 128)
    torch.manual_seed(0)
    model = build("method", "l2m:pool_size=3,rank=2").prepare(model, None)
    keys, trunk = routing.chooser(model), model.module.get_base_model().transformer
    given = [row(3, 1), row(2, 2), row(3, 1, actions=[[1, 2]] * 3, returns=[9.0] * 3)]
    batch = make_batch([{"input": render.tokens(e)} for e in given], model)["input"]
    query = keys.query(batch.ids, batch.mask, batch.targets, None, batch.arguments())
    for i, example in enumerate(given):
        states = torch.tensor(example.turns[0].parts[0].value, dtype=torch.float32)
        assert torch.allclose(query[i], trunk.of_state(states).mean(0), atol=1e-6)
    Forward({"policy": model})("policy", batch).logits()
    assert torch.equal(keys.picked.at, keys.picked.at.new_tensor(
        [keys.picked.there.index(n) for n in keys.choose(query).tolist()]))


@pytest.mark.oracle(seed=129, clause=2, against="the base: IA3 scales keys and values of a fused layer, and not its queries")
def test_a_fused_layer_keeps_its_queries(tiny):
    said = {}

    def answers(model):
        inner = model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.module
        inner.transformer.h[0].attn.c_attn.register_forward_hook(lambda layer, given, out: said.__setitem__("out", out))
        with torch.no_grad():
            return model.module(input_ids=torch.arange(300, 310)[None]).logits, said["out"]

    wanted, inside = answers(load_base(tiny))
    model = build("method", "l2m:pool_size=1,modulator=ia3").prepare(load_base(tiny), None)
    assert sorted(n.rsplit("transformer.", 1)[1] for n in model.module.peft_config["default"].target_modules) == [
        "h.0.attn.c_attn", "h.0.mlp.c_proj"]
    assert torch.equal(answers(model)[0], wanted)
    with torch.no_grad():
        for name, p in model.module.named_parameters():
            if "c_attn.pooled" in name:
                assert len(p) == 32
                p.mul_(3)
    logits, found = answers(model)
    assert torch.equal(found[..., :16], inside[..., :16]) and torch.allclose(found[..., 16:], 3 * inside[..., 16:])
    assert not torch.allclose(logits, wanted)


@pytest.mark.parametrize("changed, wanted", [
    ({"states": None}, "it has no states"), ({"returns": [0.0]}, r"found states \(3, 4\), returns \(1,\), actions \(3, 2\)"),
    ({"actions": [[0, 64]] * 3}, "actions are bins from 0 to 63; found 0 to 64")])
def test_rows_that_are_no_steps_are_left_out_by_name(changed, wanted, tiny, pico):
    render = renderer(load_base(tiny), 128)
    with pytest.raises(DroppedRow) as dropped:
        render.tokens(row(**changed))
    assert re.search(wanted, dropped.value.dropped.detail)
    with pytest.raises(DroppedRow) as dropped:
        renderer(load_base(pico), 128).tokens(row())
    assert "this is no decision transformer" in dropped.value.dropped.detail
