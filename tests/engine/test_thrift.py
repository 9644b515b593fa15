"""Less memory, the same training: activations computed again, masters beside the model; and what is refused."""

from __future__ import annotations

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.core.step import FitCtx
from luthier.engine import thrift
from luthier.engine.masters import Masters
from luthier.engine.models import load_base
from luthier.engine.thrift import activation_mb, checkpointing, wants_checkpointing
from tests.contracts.workbench import encode, examples, make_batch, make_loop, short_fit, training_data


def gradients(base, make_ctx, name: str, on: bool):
    """Gradients of a LoRA with dropout after one closure, and how many layer forwards the backward made."""
    torch.manual_seed(0)
    model = build("method", "lora:dropout=0.3").prepare(load_base(base), FitCtx(**make_ctx(name).__dict__))
    with torch.no_grad():
        for i, p in enumerate(p for p in model.module.parameters() if p.requires_grad):
            p.copy_(0.1 * torch.sin(torch.arange(p.numel()).view(p.shape) + i))
    objective = build("objective", "supervised")
    features = encode(objective, model, examples(6))
    loop = make_loop(model, objective, features, make_ctx(f"{name}/loop"))
    calls = []
    # A part within a layer: hooks of the layer itself stand outside of what is computed again.
    norms = [m for n, m in model.module.named_modules() if n.endswith(("0.input_layernorm", "block.0.layer.0.layer_norm"))]
    kept = norms[0].register_forward_pre_hook(lambda *a: calls.append(1))
    model.module.train()
    with checkpointing(model, on):
        loop.closure([make_batch(features, model)], loop.tasks[0])
    kept.remove()
    return [p.grad.clone() for p in model.module.parameters() if p.requires_grad], len(calls)


@pytest.mark.parametrize("architecture", ["decoder", "encoder-decoder"])
@pytest.mark.oracle(clause="gradients with activations computed again", against="without")
def test_activations_computed_again_give_the_same_gradients_to_the_bit(bases, make_ctx, architecture):
    base = bases[architecture]
    (plain, once), (again, twice) = (gradients(base, make_ctx, f"{on}", on) for on in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert any(g.abs().max() > 0 for g in plain)
    assert twice == 2 * once, "the layer was computed a second time"


def test_a_whole_training_is_the_same(pico, make_ctx):
    found = []
    for choice in ("off", "on"):
        inputs = {"base": pico, "examples": training_data(make_ctx(f"{choice}/examples"))}
        fit = short_fit("decoder", method="lora:dropout=0.2", activation_checkpointing=choice)
        artifact = fit.run(inputs, make_ctx(f"{choice}/fit", inputs))
        assert artifact.meta["fit"]["decisions"]["activation_checkpointing"] is (choice == "on")
        found.append((artifact.folder / "adapter_model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_auto_compares_the_estimate_with_what_is_free(pico, monkeypatch):
    model = load_base(pico)
    # 100 tokens x 2 layers x width 64 x 34 units of 2 bytes in float32
    assert activation_mb(model, 100) == pytest.approx(100 * 2 * 64 * 34 * 2 / 1e6)
    for free, wanted in ((1.0, True), (2.0, False)):
        monkeypatch.setattr(thrift, "available_mb", lambda free=free: free)
        assert wants_checkpointing("auto", model, 100) is wanted
        assert wants_checkpointing("on", model, 100) and not wants_checkpointing("off", model, 100)


def test_a_model_that_can_not_is_refused_by_name(pico, monkeypatch):
    model = load_base(pico)
    monkeypatch.setattr(type(model.module), "supports_gradient_checkpointing", False)
    assert not wants_checkpointing("auto", model, 1 << 40)
    with pytest.raises(UserError, match="activation_checkpointing: on: pico .LlamaForCausalLM. has no layers"):
        wants_checkpointing("on", model, 1)


# --- masters beside the model --------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masters_beside_the_model_train_it_to_the_same_bits(pico, make_ctx, dtype):
    left = []
    for beside in (False, True):
        model = load_base(pico, dtype)
        for name, p in model.module.named_parameters():
            p.requires_grad_("layers.1.mlp" in name)
        objective = build("objective", "supervised")
        loop = make_loop(model, objective, encode(objective, model, examples(8)), make_ctx(f"{beside}/loop"), beside=beside,
                         micro_rows=2)
        loop.train()
        left.append([p.detach().clone() for p in model.module.parameters() if p.requires_grad])
        assert all((m is p) is (not beside and dtype == torch.float32) for p, m in loop.masters.pairs)
    assert all(torch.equal(a, b) for a, b in zip(*left, strict=True))


def test_a_gradient_that_was_not_collected_would_be_seen(pico):
    """A mutant: masters that are not copied back leave the weights where they were."""
    weight = torch.nn.Parameter(torch.ones(4))
    masters = Masters([{"params": [weight]}], beside=True)
    optimizer = torch.optim.SGD(masters.groups, lr=0.5)
    weight.grad = torch.ones(4)
    masters.collect()
    assert weight.grad is None and torch.equal(masters.tensors()[0].grad, torch.ones(4))
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(4))
    masters.spread()
    assert torch.equal(weight.detach(), torch.full((4,), 0.5)) and masters.tensors()[0] is not weight


def test_offload_without_a_gpu_is_refused_with_words(pico, make_ctx):
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    with pytest.raises(UserError, match=r"offload: optimizer keeps .* runs on cpu: they are there already. Leave offload out"):
        short_fit("decoder", offload="optimizer").run(inputs, make_ctx("fit", inputs))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_offload_on_a_gpu_trains_as_without(pico, make_ctx):
    from luthier.engine.workshop import Engine

    found = []
    for choice in ("none", "optimizer"):
        inputs = {"base": pico, "examples": training_data(make_ctx(f"{choice}/examples"))}
        ctx = make_ctx(f"{choice}/fit", inputs)
        ctx.engine = Engine(threads=1, exact=True, device="cuda")
        artifact = short_fit("decoder", offload=choice).run(inputs, ctx)
        found.append([r["loss"] for r in read_lines(artifact.folder / "curve.jsonl")])
    assert found[0] == pytest.approx(found[1], abs=1e-4)
