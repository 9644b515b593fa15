"""Light-PEFT against its own estimation, masked models, gradients, stock PEFT, and what it must refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.engine import pruning
from luthier.engine.models import Model, add_tuned, load_base
from luthier.engine.pruning import Kept, Pruned
from luthier.engine.weight_sources import Changed
from luthier.techniques.methods._blocks import blocks
from luthier.techniques.methods._estimating import worth
from luthier.techniques.methods._shared import lora_layers, relora
from tests.contracts.workbench import encode, examples, make_loop, short_fit, task_for, training_data

IDS = torch.arange(5, 25).view(2, 10)


def said(model: Model) -> torch.Tensor:
    """Last hidden states, or logits."""
    with torch.no_grad():
        return model.module.eval()(input_ids=IDS)[0]


def estimated(base, make_ctx, spec: str = "", steps: int = 8, share: float = 0.5, architecture: str = "decoder"):
    """A loop after the estimation's last step, its hook, and the model; the turn itself is not made."""
    method, model = build("method", f"light-peft:dropout=0,estimate_share={share}{spec}"), load_base(base)
    objective = build("objective", task_for(architecture)["objective"])
    torch.manual_seed(0)
    method.prepare(model, None)
    if architecture == "encoder":
        model.labels = {"task": ["thing", "word"]}
        model.heads = {"task": build("head", "linear:dropout=0").build(model, ["thing", "word"])}
    loop = make_loop(model, objective, encode(objective, model, examples(8)), make_ctx("fit"), steps=steps, batch_rows=4)
    loop.hooks = [hook := method.start(model, loop.ctx)]
    loop.ctx.log = lambda text: None
    kept, hook.turn = hook.turn, lambda phase: None
    loop.plan = replace(loop.plan, steps=hook.ends[0])
    loop.train()
    hook.turn = kept
    loop.clock.until = hook.ends[0]
    return loop, hook, model


@pytest.mark.oracle(seed=17, clause=1, against="the estimated LoRA, bit for bit")
def test_nothing_cut_goes_on_with_the_estimated_lora(pico, make_ctx):
    zero = ",prune_heads=0,prune_ffn=0,prune_modules=0,prune_ranks=0,l1=0"
    _, hook, model = estimated(pico, make_ctx, zero)
    before = {n: (m.lora_A["default"].weight.clone(), m.lora_B["default"].weight.clone())
              for n, m in lora_layers(model.module).items()}
    assert any(up.any() for _, up in before.values()) and any((m != 1).any() for m in hook.heads)
    for handle in hook.handles:
        handle.remove()
    wanted = said(model)
    hook.turn(0)
    after = lora_layers(model.module)
    assert after.keys() == before.keys() and [len(kept) for kept in hook.plan["heads"]] == [2, 2], "both groups of heads"
    for name, (down, up) in before.items():
        assert torch.equal(after[name].lora_A["default"].weight, down) and torch.equal(after[name].lora_B["default"].weight, up)
        assert after[name].scaling["default"] == 2.0
    assert torch.equal(said(model), wanted)


@pytest.mark.oracle(seed=17, clause=2, against="the base")
@pytest.mark.parametrize("architecture", ["decoder", "encoder"])
def test_masks_of_one_change_nothing(architecture, bases, make_ctx):
    model = load_base(bases[architecture])
    wanted = said(model)
    method = build("method", "light-peft")
    method.prepare(model, None)
    objective = build("objective", "supervised")
    loop = make_loop(model, objective, [{}] * 8, make_ctx("fit"), steps=8)
    method.start(model, loop.ctx)
    assert (said(model) - wanted).abs().max() <= 1e-6


@pytest.mark.oracle(seed=17, clause=3, against="the masked model")
@pytest.mark.parametrize("architecture", ["decoder", "encoder"])
def test_what_is_cut_is_what_masks_of_zero_silence(architecture, bases, make_ctx):
    _, hook, model = estimated(bases[architecture], make_ctx, ",prune_heads=0.5,prune_modules=0,prune_ranks=0",
                               architecture=architecture)
    make = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in lora_layers(model.module).values():
            layer.lora_B["default"].weight.normal_(std=0.1, generator=make)
        for mask, block in zip(hook.heads, hook.blocks, strict=True):
            mask.copy_(torch.rand(block.groups, generator=make).repeat_interleave(block.heads // block.groups))
        for mask in hook.neurons:
            mask.copy_(torch.rand(len(mask), generator=make))
    heads, neurons = hook._base()
    assert {len(kept) for kept in heads} == {hook.blocks[0].groups // 2}
    with torch.no_grad():
        for mask, block, kept in zip(hook.heads, hook.blocks, heads, strict=True):
            left = torch.zeros(block.groups)
            left[kept] = 1
            mask.copy_(left.repeat_interleave(block.heads // block.groups))
        for mask, kept in zip(hook.neurons, neurons, strict=True):
            mask.zero_()
            mask[kept] = 1
    wanted, before = said(model), model.parameters()
    hook._apply({"heads": heads, "neurons": neurons, "ranks": hook._ranks()})
    assert model.parameters() < 0.9 * before
    assert (said(model) - wanted).abs().max() <= 1e-5


@pytest.mark.oracle(seed=17, clause=4, against="autograd: both sums are equal")
def test_both_sides_of_a_rank_say_the_same(pico, make_ctx):
    model, objective = build("method", "light-peft:dropout=0").prepare(load_base(pico), None), build("objective", "supervised")
    with torch.no_grad():
        for layer in lora_layers(model.module).values():
            layer.lora_B["default"].weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    loop = make_loop(model, objective, encode(objective, model, examples(8)), make_ctx("fit"), steps=1)
    loop.closure([loop.collate(loop.tasks[0], range(8))])
    for name, layer in lora_layers(model.module).items():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        inner, outer = (down * down.grad).double().sum(1), (up * up.grad).double().sum(0)
        assert torch.allclose(inner, outer, rtol=1e-4, atol=1e-6 * float(inner.abs().max())), name
        wanted = inner.abs() * (1 / down.shape[1] + 1 / up.shape[0])
        assert torch.allclose(worth(down, down.grad, up, up.grad), wanted.detach(), rtol=1e-3, atol=1e-9)
    assert not worth(down, torch.full_like(down, float("nan")), up, up).any(), "what is no number is worth nothing"


@pytest.mark.oracle(seed=17, clause=5, against="zeros in A and B")
def test_a_rank_that_is_cut_is_a_rank_of_zeros(pico):
    def fresh():
        torch.manual_seed(0)
        model = build("method", "lora:rank=4,alpha=8").prepare(load_base(pico), None)
        with torch.no_grad():
            for layer in lora_layers(model.module).values():
                layer.lora_B["default"].weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        return model

    zeroed, cut = fresh(), fresh()
    with torch.no_grad():
        for layer in lora_layers(zeroed.module).values():
            layer.lora_A["default"].weight[1] = 0
            layer.lora_B["default"].weight[:, 1] = 0
    kept = torch.tensor([0, 2, 3])
    relora(cut, {n: (m.lora_A["default"].weight[kept], m.lora_B["default"].weight[:, kept])
                 for n, m in lora_layers(cut.module).items()}, 2.0)
    assert (said(cut) - said(zeroed)).abs().max() <= 1e-6 and (said(cut) - said(fresh())).abs().max() > 1e-4


@pytest.fixture
def tuned(pico, make_ctx):
    inputs, lines = {"base": pico, "examples": training_data(make_ctx("examples"))}, []
    ctx = make_ctx("fit", inputs)
    ctx.log = lines.append
    fit = short_fit("decoder", method="light-peft:estimate_share=0.5", length={"steps": 8})
    artifact = fit.run(inputs, ctx)
    assert {r.verdict for r in fit.receipts(inputs, artifact, ctx)} <= {"agrees", "not applicable"}
    return artifact, lines


@pytest.mark.oracle(seed=17, clause=6, against="stock PEFT on the cut base")
def test_the_file_loads_in_stock_peft_on_the_cut_base(tuned, pico):
    from peft import PeftModel

    artifact, _ = tuned
    wanted = said(add_tuned(load_base(pico), artifact))
    plain = load_base(pico)
    pruning.install(plain, artifact)
    plain.module = PeftModel.from_pretrained(plain.module, artifact.folder)
    assert (said(plain) - wanted).abs().max() <= 1e-6
    config = read_json(artifact.folder / "adapter_config.json")
    assert config["rank_pattern"] or len({m.r["default"] for m in lora_layers(plain.module).values()}) == 1
    assert {round(m.scaling["default"], 6) for m in lora_layers(plain.module).values()} == {2.0}


def test_a_run_says_what_was_cut(tuned, pico):
    artifact, lines = tuned
    told, text = read_json(artifact.folder / "light_peft.json"), "\n".join(lines)
    assert told["heads"] == [2, 2], "of two groups a third is none"
    assert sum(told["neurons"]) == 256 - 85
    assert len(told["ranks"]) <= 4 and sum(told["ranks"].values()) == 16
    assert "4 steps of estimation order little" in text and "s a step in the estimation" in text
    assert "weights, " in text and "of them trained -> " in text and "deviation of the masks" in text
    assert artifact.meta["fit"]["total_parameters"] < load_base(pico).parameters()
    with pytest.raises(UserError, match="of which parts were cut off"):
        Changed(None, artifact.folder)


def test_shared_keys_are_cut_in_groups(pico, make_ctx):
    _, hook, model = estimated(pico, make_ctx, ",prune_heads=0.5")
    with torch.no_grad():
        for mask in hook.heads:
            mask.copy_(torch.tensor([0.9, 0.0, 0.5, 0.6]))  # groups of two: 0.9 and 1.1
    assert [kept.tolist() for kept in hook._base()[0]] == [[1], [1]]
    hook.turn(0)
    layer = model.module.get_base_model().model.layers[0].self_attn
    assert (layer.q_proj.weight.shape[0], layer.k_proj.weight.shape[0], layer.o_proj.weight.shape[1]) == (32, 16, 32)


def test_a_layer_keeps_a_head_and_a_neuron(pico, make_ctx):
    _, hook, _ = estimated(pico, make_ctx, ",prune_heads=0.99,prune_ffn=0.99")
    with torch.no_grad():
        hook.neurons[0].zero_()
    heads, neurons = hook._base()
    assert [len(k) for k in heads] == [1, 1] and len(neurons[0]) == 1


def test_the_best_modules_and_ranks_stay(pico, make_ctx):
    _, hook, _ = estimated(pico, make_ctx, ",prune_modules=0.9,prune_ranks=0.5")
    best = "model.layers.1.mlp.up_proj"
    for name in hook.ratios:
        hook.ratios[name] = torch.tensor([9.0 if name == best else 1.0, 3.0], dtype=torch.float64)
    hook.scores[best] = torch.arange(8, dtype=torch.float64)
    other = next(iter(hook.ratios))
    found = hook._ranks()
    assert set(found) == {best, other} and set(found[best].tolist()) >= {4, 5, 6, 7}


def test_ratios_are_of_the_norms_that_the_layers_say(pico, make_ctx):
    loop, hook, _ = estimated(pico, make_ctx, ",l1=0")
    hook._heard, hook._waiting, loop.clock.step = [], [], hook.ends[0] - 1
    loop.clock.until = hook.ends[0]
    inputs, outputs = {}, {}

    def watch(name):
        def seen(module, given, out):
            inputs[name], outputs[name] = given[0], out

        return seen

    handles = [layer.register_forward_hook(watch(n)) for n, layer in hook.layers.items()]
    batch = loop.collate(loop.tasks[0], range(4))
    loop.parts(batch, loop.tasks[0])
    for handle in handles:
        handle.remove()
    for name, total, count in hook._waiting:
        layer, x = hook.layers[name], inputs[name]
        low = 2.0 * x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
        ratio = low.norm(dim=-1) / (outputs[name] - low).norm(dim=-1)
        assert total / count == pytest.approx(float(ratio.mean()), rel=1e-2, abs=1e-6)
    assert len(hook._waiting) == 14


@pytest.mark.parametrize(("spec", "found"), [("prune_heads=1", "prune_heads = 1"), ("prune_ranks=-0.1", "prune_ranks = -0.1"),
                                             ("estimate_share=0", "estimate_share = 0")])
def test_shares_are_shares(spec, found):
    with pytest.raises(UserError, match=found):
        build("method", f"light-peft:{spec}")


def test_what_can_not_be_cut_is_refused(pico, pico_encoder_decoder, make_ctx):
    with pytest.raises(UserError, match="light-peft cuts the layers of one stack; .* in two stacks"):
        build("method", "light-peft").prepare(load_base(pico_encoder_decoder), None)
    model = load_base(pico)
    layers = model.module.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    with pytest.raises(UserError, match="layers of pico share weights, and can't be cut apart"):
        build("method", "light-peft").prepare(model, None)
    model = load_base(pico)
    layers = model.module.model.layers
    layers[1].mlp.gates = layers[1].mlp._modules.pop("gate_proj")
    layers[1].mlp.forward = lambda x: x
    with pytest.raises(UserError, match="does not know the heads and neurons of pico. Its layers have: .*gates"):
        blocks("light-peft", model)


def test_what_is_left_must_fit_the_base(pico, tuned):
    for name, kept in (("model.layers.7.mlp.up_proj", Kept(rows=torch.arange(3))),
                       ("model.layers.0.mlp.up_proj", Kept(rows=torch.tensor([128])))):
        with pytest.raises(UserError, match=f"What is left of '{name}' does not fit pico"):
            Pruned({name: kept}).cut(load_base(pico))
    artifact, _ = tuned
    other = load_base(pico)
    other.base = replace(other.base, identity="another")
    with pytest.raises(UserError, match="was trained on pico"):
        add_tuned(other, artifact)
