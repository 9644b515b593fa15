"""Mixout against plain fine-tuning, its closed form, torch's dropout, and trainings that are stopped."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import dropout

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.engine.models import add_tuned, load_base
from luthier.techniques.training import mixout as module
from luthier.techniques.training.mixout import kept, mix
from tests.contracts.workbench import short_fit, training_data, tuned_logits
from tests.recorded import far, recorded, wave


def fitted(make_ctx, base, name: str, architecture: str = "decoder", **changed):
    inputs = {"base": base, "examples": training_data(make_ctx(f"{name}/examples"))}
    fit = short_fit(architecture, **{"length": {"steps": 5}, "method": "full", "learning_rate": 1e-3, **changed})
    artifact = fit.run(inputs, make_ctx(f"{name}/fit", inputs))
    return artifact, [r["loss"] for r in read_lines(artifact.folder / "curve.jsonl")]


def started(base, make_ctx, spec: str, method: str = "full", step: int = 0):
    """(model, hook) of a training that is about to begin; `step` steps of it are done."""
    model = build("method", method).prepare(load_base(base), None)
    ctx = make_ctx("start")
    ctx.clock = SimpleNamespace(step=step)
    return model, build("regularizer", spec).start(model, ctx)


# --- the equation ---------------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=122, clause=1, against="plain fine-tuning")
@pytest.mark.parametrize("architecture", ["decoder", "encoder"])
def test_p_zero_is_plain_fine_tuning_bit_for_bit(architecture, bases, make_ctx):
    """The encoder has dropout, which mixout must not shift."""
    plain, curve = fitted(make_ctx, bases[architecture], "plain", architecture)
    mixed, other = fitted(make_ctx, bases[architecture], "mixed", architecture, regularizers=("mixout:p=0",))
    assert curve == other and plain.identity == mixed.identity


@pytest.mark.oracle(seed=122, clause=1, against="plain fine-tuning")
def test_masks_do_not_shift_dropout(pico_encoder, make_ctx):
    """Mixed with w = u nothing is mixed, so one step of mixout with dropout kept is a step without it."""
    _, curve = fitted(make_ctx, pico_encoder, "plain", "encoder", length={"steps": 1})
    _, other = fitted(make_ctx, pico_encoder, "mixed", "encoder", length={"steps": 1},
                      regularizers=("mixout:p=0.5,replace_dropout=false",))
    assert curve == pytest.approx(other, rel=1e-6)
    _, without = fitted(make_ctx, pico_encoder, "off", "encoder", length={"steps": 1}, regularizers=("mixout:p=0.5",))
    assert without != pytest.approx(curve, rel=1e-4), "dropout there is, and by default mixout takes its place"


@pytest.mark.oracle(seed=122, clause=2, against="closed form: the pretrained weight")
@pytest.mark.parametrize("p", [0.1, 0.7, 0.99])
def test_where_nothing_has_moved_nothing_is_mixed(p):
    make = torch.Generator().manual_seed(0)
    u = torch.randn(40, 30, generator=make)
    for seed in range(20):
        torch.manual_seed(seed)
        found = mix(u, u, kept([40, 30], p, "layer", u.device), p)
        assert ((found - u).abs() <= 1e-6 * u.abs()).all()


@pytest.mark.oracle(seed=122, clause=3, against="closed form: L(w) + p / (2 (1 - p)) |w - u|²")
@pytest.mark.parametrize("p", [0.3, 0.7, 0.9])
def test_the_mean_loss_is_the_loss_and_a_pull(p):
    make = torch.Generator().manual_seed(1)
    w, u, c = (torch.randn(12, 8, generator=make, dtype=torch.float64) for _ in range(3))
    torch.manual_seed(0)
    keep = kept([20000, 12, 8], p, "layer", w.device)
    found = 0.5 * (mix(w, u, keep, p) - c).square().sum((1, 2))
    wanted = 0.5 * (w - c).square().sum() + p / (2 * (1 - p)) * (w - u).square().sum()
    assert abs(float(found.mean() - wanted)) <= 4 * float(found.std()) / len(found) ** 0.5
    assert float(found.std()) / len(found) ** 0.5 < 0.01 * float(wanted), "and the trial is fine enough to see 4 %"


@pytest.mark.oracle(seed=122, clause=4, against="torch.nn.functional.dropout")
def test_toward_zero_is_dropout_of_the_weight():
    """Torch's mask is read off its dropout of ones, and given to both."""
    w = torch.randn(30, 20, generator=torch.Generator().manual_seed(2))
    for p in (0.2, 0.7):
        torch.manual_seed(3)
        keep = dropout(torch.ones_like(w), p) > 0
        torch.manual_seed(3)
        assert torch.allclose(mix(w, torch.zeros_like(w), keep, p), dropout(w, p), rtol=1e-6, atol=0)


@pytest.mark.oracle(seed=122, clause=4, against="the code of mixout's authors")
@pytest.mark.parametrize("record", recorded("mixout")["records"], ids=lambda r: f"p={r['p']},target={r['target']}")
def test_mixed_weights_are_those_of_the_authors_code(record):
    """Given the masks that it drew, one for all outputs. The gradient that it hands back lacks the 1 / (1 - p) of its own
    equation, and ours has it.
    """
    p, shape, keep = record["p"], recorded("mixout")["shape"], torch.tensor(record["kept"])
    w = wave(*shape).requires_grad_(True)
    mixed = mix(w, wave(*shape, shift=0.2) if record["target"] else torch.zeros(shape), keep, p)
    (mixed * wave(*shape, shift=0.9)).sum().backward()
    assert 0 < keep.float().mean() < 1 and far(mixed, record["mixed"]) <= 1e-6
    assert far((1 - p) * w.grad, record["gradient"]) <= 1e-6


@pytest.mark.oracle(seed=122, clause=3, against="closed form: mean and variance of an entry")
@pytest.mark.parametrize("granularity, shape", [("element", [6, 5]), ("row", [6, 1])])
def test_what_is_swapped_together(granularity, shape, pico, make_ctx, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "kept", lambda shape, p, name, device: (seen.append(shape), kept(shape, p, name, device))[1])
    model, _ = started(pico, make_ctx, f"mixout:p=0.5,granularity={granularity}")
    model.module.train()
    layer = next(m for m in model.module.modules() if isinstance(m, nn.Linear) and m._forward_pre_hooks)
    layer(torch.randn(2, layer.in_features))
    assert seen == [list(layer.weight.shape) if granularity == "element" else [layer.out_features, 1]]
    w, u = torch.full(shape[:1] + [5], 3.0), torch.full(shape[:1] + [5], 1.0)
    torch.manual_seed(0)
    found = mix(w, u, kept([3000, *shape], 0.5, "a", w.device), 0.5)
    assert torch.allclose(found.mean(0), w, atol=0.2) and torch.allclose(found.var(0), torch.full_like(w, 4.0), atol=0.3)
    assert (found[:, 0] == found[:, 0, :1]).all() == (granularity == "row")


# --- in a model -----------------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=122, clause=5, against="the unwrapped model")
def test_evaluation_is_that_of_the_plain_model(pico, make_ctx):
    model, hook = started(pico, make_ctx, "mixout:p=0.9")
    plain = load_base(pico)
    with torch.no_grad():
        for m in (model, plain):
            for i, parameter in enumerate(m.module.parameters()):
                parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel()).view(parameter.shape) + i))
    assert torch.equal(tuned_logits(model), tuned_logits(plain))
    ids = torch.arange(5, 25)[None]
    model.module.train()
    torch.manual_seed(0)
    one, again = (model.module(ids).logits for _ in range(2))
    torch.manual_seed(1)
    other = model.module(ids).logits
    assert torch.equal(one, again) and (one - other).abs().max() > 1e-2, "one draw a seed, and another for another"
    assert (one - tuned_logits_of(plain, ids)).abs().max() > 1e-2
    hook.end()
    model.module.train()
    assert torch.equal(model.module(ids).logits, tuned_logits_of(plain, ids))
    assert all("weight" not in m.__dict__ and not m._forward_pre_hooks for m in model.module.modules())


def tuned_logits_of(model, ids):
    with torch.no_grad():
        return model.module.eval()(ids).logits


def test_the_gradient_reaches_the_kept_entries_alone():
    w, u = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    keep = torch.rand(4, 3) >= 0.5
    mix(w, u.detach(), keep, 0.5).sum().backward()
    assert torch.equal(w.grad, keep.float() / 0.5) and u.grad is None


def test_activations_that_are_computed_again_meet_the_same_weights(pico, make_ctx):
    parts = {"regularizers": ("mixout:p=0.5",), "length": {"steps": 3}}
    plain, curve = fitted(make_ctx, pico, "kept", activation_checkpointing="off", **parts)
    again, other = fitted(make_ctx, pico, "again", activation_checkpointing="on", **parts)
    assert curve == pytest.approx(other, abs=1e-5)
    one, two = (tuned_logits(add_tuned(load_base(pico), a)) for a in (plain, again))
    assert (one - two).abs().max() <= 1e-4


def test_a_strong_mixture_stays_near_the_start(pico, make_ctx):
    begin = dict(load_base(pico).module.named_parameters())
    gone = {}
    for name, parts in (("plain", ()), ("mixout", ("mixout:p=0.9",)), ("l2-sp", ("l2-sp:weight=1",))):
        artifact, _ = fitted(make_ctx, pico, name, regularizers=parts, optimizer="adamw", length={"steps": 12})
        tuned = dict(add_tuned(load_base(pico), artifact).module.named_parameters())
        gone[name] = float(sum((tuned[n] - begin[n]).square().sum() for n in begin if "proj" in n)) ** 0.5
    assert gone["mixout"] < gone["plain"] and gone["l2-sp"] < gone["plain"], gone


def test_the_pull_is_its_closed_form(pico, make_ctx):
    model, hook = started(pico, make_ctx, "l2-sp:weight=0.4,target=q_proj")
    with torch.no_grad():
        for layer in model.module.model.layers:
            layer.self_attn.q_proj.weight.add_(0.5)
    found = hook.on_loss(None, None, {})["l2-sp"]
    entries = sum(layer.self_attn.q_proj.weight.numel() for layer in model.module.model.layers)
    assert float(found.detach()) == pytest.approx(0.2 * 0.25 * entries, rel=1e-5)


# --- bad input ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("spec, said", [
    ("mixout:p=1", "p = 1: Input should be less than 1"),
    ("mixout:p=-0.1", "p = -0.1: Input should be greater than or equal to 0"),
    ("mixout:granularity=column", "granularity = 'column'"),
])
def test_a_setting_that_is_none_is_refused(spec, said):
    with pytest.raises(UserError, match=said):
        build("regularizer", spec)


@pytest.mark.parametrize("spec, method, said", [
    ("mixout", "lora", "mixout is about pretrained weights, and an adapter's own are not .*mixout:adapters=true"),
    ("mixout", "layernorm", "mixout finds no linear layer that is trained"),
    ("mixout:target=nothing", "full", "no trained linear layer is called nothing.*This model has: .*q_proj"),
    ("mixout:reference=/nowhere", "full", "no base '/nowhere'"),
])
def test_what_can_not_be_mixed_is_refused(spec, method, said, pico, make_ctx):
    with pytest.raises(UserError, match=said):
        started(pico, make_ctx, spec, method)


def test_after_the_first_step_only_a_reference_says_what_was_pretrained(pico, pico_encoder, make_ctx):
    from luthier.engine.models import folder_of

    with pytest.raises(UserError, match="mixout was attached after 3 steps.*reference=FOLDER"):
        started(pico, make_ctx, "mixout", step=3)
    folder = folder_of(pico)
    _, hook = started(pico, make_ctx, f"mixout:reference={folder}", step=3)
    assert hook.handles
    with pytest.raises(UserError, match="is an encoder, pico an decoder"):
        started(pico, make_ctx, f"mixout:reference={folder_of(pico_encoder)}", step=3)


def test_a_reference_of_other_shapes_is_refused_by_tensor(pico, make_ctx, tmp_path):
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    from luthier.engine.models import folder_of

    config = LlamaConfig(**{**load_base(pico).module.config.to_dict(), "intermediate_size": 24})
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    shutil.copy(folder_of(pico) / "tokenizer.json", tmp_path)
    with pytest.raises(UserError, match=r"weights differ in shape\. .*gate_proj is 24x64, not"):
        started(pico, make_ctx, f"mixout:reference={tmp_path}")


@pytest.mark.parametrize("dtype, device, said", [(torch.int8, "cpu", r"quantised \(torch.int8\)"),
                                                 (torch.float32, "meta", "on the meta device")])
def test_weights_without_numbers_of_their_own_are_refused(dtype, device, said, pico, make_ctx, monkeypatch):
    model = build("method", "full").prepare(load_base(pico), None)
    held = SimpleNamespace(is_meta=device == "meta", is_floating_point=lambda: dtype.is_floating_point, dtype=dtype)
    monkeypatch.setattr("luthier.techniques.training.mixout.trained_linears",
                        lambda *given: {"q_proj": SimpleNamespace(weight=held)})
    ctx = make_ctx("start")
    ctx.clock = SimpleNamespace(step=0)
    with pytest.raises(UserError, match=f"mixout: the weight of q_proj is {said}"):
        build("regularizer", "mixout").start(model, ctx)


def test_the_folder_of_a_reference_is_part_of_the_training(pico):
    from luthier.engine.models import folder_of
    from luthier.engine.steps.fit import Fit

    fit = Fit(regularizers=(f"mixout:reference={folder_of(pico)}", "l2-sp"))
    assert list(fit.content()) == ["mixout"] and Fit().content() == {}


def test_an_adapter_is_mixed_where_that_is_asked(pico, make_ctx):
    _, curve = fitted(make_ctx, pico, "plain", method="lora", learning_rate=1e-2)
    _, mixed = fitted(make_ctx, pico, "mixed", method="lora", learning_rate=1e-2, regularizers=("mixout:adapters=true",))
    assert mixed[-1] < mixed[0] and mixed[1:] != curve[1:]
