"""Training above kept states is training: same losses, same weights, nothing below computed, recorded or moved."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from luthier.core.errors import UserError
from luthier.core.kinds import Hook, Tokens
from luthier.engine import frozen as frozen_module
from luthier.engine import kept_states
from luthier.engine.activation_cache import ActivationCache
from luthier.engine.kept_states import KeptStates, laid_out
from luthier.engine.layers import layer_stacks
from tests.contracts.workbench import short_fit, training_data
from tests.engine.frozen_cases import MODELS, fresh_from, loop_of, losses, trained


@pytest.fixture
def fresh(bases):
    return fresh_from(bases)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_training_above_kept_states_is_training(name, packed, fresh, make_ctx):
    left = {}
    for mode in ("on", "off"):
        model = fresh(name)
        before = trained(model)
        loop = loop_of(model, make_ctx(f"{mode}/fit"), mode, packed=packed)
        loop.train()
        left[mode] = losses(loop), trained(model), {n for n, p in trained(model).items() if not torch.equal(p, before[n])}
        decision = loop.run.frozen.decision
        assert decision.use == (mode == "on") and decision.distance in (0.0, None), "the same operations, the same numbers"
    assert left["on"][0] == pytest.approx(left["off"][0], abs=1e-6)
    for weight, other in zip(left["on"][1].values(), left["off"][1].values(), strict=True):
        assert (weight - other).abs().max() <= 1e-6
    top = {"llama": ("layers.2.", "layers.3.", "model.norm"), "gemma3": ("layers.4.", "layers.5.", "model.norm"),
           "bert": ("layer.2.", "layer.3.")}[name]
    assert left["on"][2] == left["off"][2] and all(any(t in n for t in top) for n in left["on"][2])
    assert {t for t in top if any(t in n for n in left["on"][2])} == set(top)


@pytest.mark.parametrize("name", MODELS)
def test_what_lies_below_is_computed_once_a_row(name, fresh, make_ctx):
    model = fresh(name)
    tokens = {"below": 0, "above": 0}
    loop = loop_of(model, make_ctx("fit"), "on")
    (stack,) = layer_stacks(model)
    for place, layer in (("below", stack.layers[0]), ("above", stack.layers[-1])):
        def count(module, arguments, answer, place=place):
            tokens[place] += answer.shape[0] * answer.shape[1]
        layer.register_forward_hook(count)
    loop.run.frozen.ready()
    after_filling = dict(tokens)
    loop.train()
    assert tokens["below"] == after_filling["below"] > 0
    assert tokens["above"] > after_filling["above"]


@pytest.mark.parametrize("last", [0, 1, 3])
def test_any_number_of_layers_may_be_trained(last, fresh, make_ctx):
    found = {}
    for mode in ("on", "off"):
        loop = loop_of(fresh("llama", last), make_ctx(f"{mode}/fit"), mode)
        loop.train()
        found[mode] = losses(loop)
        assert loop.run.frozen.decision.below == 4 - last
    assert found["on"] == pytest.approx(found["off"], abs=1e-6)


def test_short_formats_keep_their_own_states(fresh, make_ctx):
    found = {}
    for mode in ("on", "off"):
        model = fresh("gemma3")
        model.module.to(torch.bfloat16)
        loop = loop_of(model, make_ctx(f"{mode}/fit"), mode)
        loop.train()
        found[mode] = losses(loop)
        decision = loop.run.frozen.decision
    assert found["on"] == pytest.approx(found["off"], abs=2e-2)
    header = json.loads((make_ctx("on/fit").folder / "activations" / "header.json").read_text())
    assert header["dtype"] == "bfloat16" and header["width"] == 64 and not decision.use


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_rows_that_begin_alike_and_rows_that_are_alike(packed, fresh, make_ctx):
    common = list(range(20, 60))
    ids = [[*common, 7 + i, 8] for i in range(4)] + [[*common, 7, 8]] * 2 + [[5, 6, 7, 9], [*common[:30], 9, 9, 9]]
    features = [{"input": Tokens(r, [False] * (len(r) - 2) + [True, True])} for r in ids]
    found = {}
    for mode in ("on", "off"):
        loop = loop_of(fresh("llama"), make_ctx(f"{mode}/fit"), mode, packed=packed, steps=4, features=features)
        loop.train()
        found[mode] = losses(loop)
    assert found["on"] == pytest.approx(found["off"], abs=1e-6)
    rows = json.loads((make_ctx("on/fit").folder / "activations" / "header.json").read_text())["rows"]
    assert rows == 6, "what is alike is kept once"


# --- mutants: the proof sees each of them ----------------------------------------------------------------------------

def one_layer_too_low(monkeypatch):
    own = KeptStates._compute

    def compute(self, rows):
        self.below -= 1
        try:
            return own(self, rows)
        finally:
            self.below += 1

    monkeypatch.setattr(KeptStates, "_compute", compute)


def one_token_off(monkeypatch):
    own = ActivationCache.read
    monkeypatch.setattr(ActivationCache, "read", lambda self, rows: own(self, rows).roll(1, 0))


def rows_mixed_up(monkeypatch):
    own = kept_states.laid_out
    monkeypatch.setattr(kept_states, "laid_out", lambda s, where, shape: own(s, where.flip(0), shape))


def scaled(monkeypatch):
    own = ActivationCache.read
    monkeypatch.setattr(ActivationCache, "read", lambda self, rows: own(self, rows) * 1.05)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mutant", [one_layer_too_low, one_token_off, rows_mixed_up, scaled])
def test_wrong_states_are_seen_and_not_used(name, mutant, fresh, make_ctx, monkeypatch):
    mutant(monkeypatch)
    auto = loop_of(fresh(name), make_ctx("auto/fit"), "auto").run.frozen
    auto.ready()
    assert not auto.decision.use and "other results" in auto.decision.why and auto.decision.distance > 9e-6
    with pytest.raises(UserError, match=r"cache_frozen: on, but states from the file .* Use cache_frozen: auto"):
        loop_of(fresh(name), make_ctx("on/fit"), "on").run.frozen.ready()


# --- when it is decided against --------------------------------------------------------------------------------------

class Changing(Hook):
    def on_batch(self, batch):
        return [batch]


@pytest.mark.parametrize(("case", "why"), [
    ({"epochs": 1.0}, "no row is seen twice"), ({"last": 4}, "everything is trained"),
    ({"last": 5, "name": "gemma3"}, "only 1 of 6 layers are frozen"), ({"hooks": (Changing(),)}, "Changing may change"),
    ({"listen": True}, "something listens to the frozen"), ({"disk": 1}, "MB free disk"), ({"room": False}, "no room"),
    ({"mode": "off"}, "it is off")])
def test_auto_says_why_not(case, why, fresh, make_ctx, monkeypatch):
    name, last = case.get("name", "llama"), case.get("last", 2)
    model = fresh(name, last)
    if "listen" in case:
        layer_stacks(model)[0].layers[1].register_forward_hook(lambda m, a, o: None)
    if "last" in case and last == 4:
        model.module.get_input_embeddings().requires_grad_(True)
    if "disk" in case:
        monkeypatch.setattr(frozen_module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": case["disk"]}))
    if "room" in case:
        monkeypatch.setattr("os.posix_fallocate", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    loop = loop_of(model, make_ctx("fit"), case.get("mode", "auto"), epochs=case.get("epochs", 2.0),
                   hooks=case.get("hooks", ()))
    loop.run.frozen.ready()
    assert not loop.run.frozen.decision.use and why in loop.run.frozen.decision.why
    assert not (make_ctx("fit").folder / "activations").exists()


def test_a_weight_that_acts_below_through_a_hook_is_found(fresh, make_ctx):
    model = fresh("llama")
    shift = nn.Parameter(torch.zeros(64))
    layer_stacks(model)[0].layers[0].register_forward_hook(lambda m, a, answer: answer + shift)
    frozen = loop_of(model, make_ctx("fit"), "auto").run.frozen
    frozen.ready()
    assert "something trained acts below layer 3" in frozen.decision.why


def test_two_stacks_fall_back(make_ctx, pico_encoder_decoder):
    inputs = {"base": pico_encoder_decoder, "examples": training_data(make_ctx("examples"))}
    artifact = short_fit("encoder-decoder", method="layer-freezing").run(inputs, make_ctx("fit", inputs))
    decision = artifact.meta["fit"]["decisions"]["cache_frozen"]
    assert not decision["use"] and "two stacks" in decision["why"]
    with pytest.raises(UserError, match="cache_frozen: on, but the model has two stacks"):
        short_fit("encoder-decoder", method="layer-freezing", cache_frozen="on").run(inputs, make_ctx("on/fit", inputs))


# --- rows that are not known -----------------------------------------------------------------------------------------

def test_rows_that_changed_on_the_way_are_computed_whole(fresh, make_ctx):
    class Changed(Hook):
        def on_batch(self, batch):
            ids = batch["input"].ids.clone()
            ids[:, 1] = 9
            return [{**batch, "input": replace(batch["input"], ids=ids)}]

    found = {}
    for mode in ("on", "off"):
        loop = loop_of(fresh("llama"), make_ctx(f"{mode}/fit"), mode, hooks=(Changed(),))
        loop.train()
        found[mode] = losses(loop)
    assert found["on"] == found["off"], "nothing was known, so nothing differs"


def test_other_embeddings_and_all_layers_are_computed_whole(fresh, make_ctx):
    model = fresh("llama")
    loop = loop_of(model, make_ctx("fit"), "on")
    (batch, *_) = loop.batch(loop.tasks[0], 0)
    loop.run.frozen.ready()
    with torch.no_grad():
        plain = loop.run("policy", batch["input"])
        embeds = model.module.get_input_embeddings()(batch["input"].ids)
        other = loop.run("policy", batch["input"], embeds=embeds * 2)
        layers = loop.run("policy", batch["input"], layers=True)
    assert (other.nll() - plain.nll()).abs().max() > 1e-4
    assert len(layers.all_states) == 5
    assert (layers.nll() - plain.nll()).abs().max() <= 1e-5


def test_a_shared_place_has_the_first_rows_states_and_padding_none():
    states = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    where = torch.tensor([0, 1, 0, 3])
    assert laid_out(states, where, torch.Size([1, 5])).flatten().tolist() == [1, 2, 0, 4, 0]
    assert laid_out(states, torch.arange(4), torch.Size([2, 2]))[1, 0] == 3


# --- gradients stop --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("asked", [False, True], ids=["plain", "embeddings ask for gradients"])
@pytest.mark.parametrize("mode", ["on", "off"])
def test_autograd_keeps_nothing_of_what_lies_below(mode, asked, fresh, make_ctx):
    model = fresh("llama")
    if asked:
        model.module.enable_input_require_grads()
    loop = loop_of(model, make_ctx("fit"), mode)
    loop.run.frozen.ready()
    stack, kept, inside = layer_stacks(model)[0], [], []
    for layer in stack.layers[:2]:
        layer.register_forward_pre_hook(lambda m, a: inside.append(m))
        layer.register_forward_hook(lambda m, a, o: inside.pop() and None)
    (batch, *_) = loop.batch(loop.tasks[0], 0)
    model.module.train()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(bool(inside)) or t, lambda t: t):
        loss = loop.run("policy", batch["input"]).nll().sum()
    assert kept and not any(kept)
    loss.backward()
    assert all(p.grad is not None for p in stack.layers[2].parameters())


def test_dropout_below_is_off_while_states_are_kept(fresh, make_ctx):
    model = fresh("bert")
    for module in model.module.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    loop = loop_of(model, make_ctx("fit"), "on")
    (batch, *_) = loop.batch(loop.tasks[0], 0)
    model.module.train()
    loop.run.frozen.ready()
    entering = []
    layer_stacks(model)[0].layers[2].register_forward_pre_hook(lambda m, a: entering.append(a[0]))
    for known in (True, False):
        if not known:
            loop.run.frozen._kept._slots = {}
        for _ in range(2):
            loop.run("policy", batch["input"])
    assert torch.equal(entering[0], entering[1]) and torch.equal(entering[2], entering[3])
    assert (entering[0] - entering[2]).abs().max() <= 1e-5
    assert model.module.training and all(m.training for m in model.module.modules())
