"""QEFT against the base it reorders, nearest rounding, closed forms of GPTQ, a dense emulation, and what it must refuse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.core.kinds import Method
from luthier.engine import low_bits
from luthier.engine.low_bits import layers_of
from luthier.engine.models import Model, add_tuned, load_base
from luthier.techniques.methods._calibration import squares, walk
from luthier.techniques.methods._quantizers import affine, gptq
from luthier.techniques.methods._reordering import SHARING, linears, stack_of
from tests.contracts.workbench import encode, examples, make_loop, short_fit, training_data, tuned_logits

TEXT = " ".join(f"The {a} of a {b} is not the {b} of a {a}." for a in ("module", "class", "object", "name", "scope", "block")
                for b in ("list", "string", "number", "call", "value", "type"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "calibration.txt"
    path.write_text(TEXT * 3)
    return path


def lively(model):
    """Norms and biases that are not all alike: a channel in the wrong place must show."""
    make = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=make))
            elif "embed" in name:
                parameter.mul_(torch.linspace(0.2, 3.0, parameter.shape[1]))
    return model


def gemma(pico) -> Model:
    """A Gemma 3 of two layers: tied embeddings, norms on both sides of each sublayer and on q and k, grouped keys."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    base = load_base(pico)
    config = Gemma3TextConfig(vocab_size=base.module.config.vocab_size, hidden_size=48, intermediate_size=96, head_dim=16,
                              num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, sliding_window=16)
    module = Gemma3ForCausalLM(config).eval().requires_grad_(False)
    return Model(module, base.tokenizer, "decoder", "gemma", "gemma", 512, pico)


def llama(pico) -> Model:
    return load_base(pico)


def prepared(model, spec: str, text, ctx=None):
    return build("method", f"qeft:calibration={text},tokens=16,group=16{spec}").prepare(model, ctx)


@pytest.mark.oracle(seed=111, clause=1, against="the model before it was reordered")
@pytest.mark.oracle(seed=111, clause=2, against="the base's own weights")
@pytest.mark.parametrize("make", [llama, gemma])
def test_in_another_order_it_is_the_same_model(make, pico, text):
    model = lively(make(pico))
    wanted, own = tuned_logits(model), {n: p.detach().clone() for n, p in model.module.named_parameters()}
    prepared(model, ",bits=16,weak=6", text)
    assert (tuned_logits(model) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    residual = model.low_bits.along["model.norm.weight", 0]
    assert not torch.equal(residual, torch.arange(len(residual))) and sorted(residual.tolist()) == list(range(len(residual)))
    assert torch.equal(model.module.get_input_embeddings().weight, own["model.embed_tokens.weight"][:, residual])
    for number in range(2):
        hidden = model.low_bits.along[f"model.layers.{number}.mlp.up_proj.weight", 0]
        for name, layer in layers_of(model.module).items():
            if f"layers.{number}." not in name:
                continue
            dense, last, was = layer.dense(), name.rpartition(".")[2], own[f"{name}.weight"]
            rows = {"gate_proj": hidden, "up_proj": hidden, "o_proj": residual, "down_proj": residual}.get(last)
            columns = {"o_proj": None, "down_proj": hidden}.get(last, residual)
            was = was if rows is None else was[rows]
            assert torch.equal(dense, was if columns is None else was[:, columns]), name


@pytest.mark.oracle(seed=111, clause=2, against="the weights themselves")
def test_as_many_whole_columns_as_there_are_leave_the_weights():
    x, weight = correlated(width=8), torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    matrix, columns = gptq(weight, 2 * x.T @ x, 2, 4, 8)
    layer = low_bits.LowBitLinear(matrix, None, columns)
    assert torch.equal(layer.dense(), weight) and torch.equal(layer(x), x @ weight.T)
    assert torch.equal(gptq(torch.cat([weight, weight], 1), torch.eye(16), 4, 4, 8)[1], weight), "nothing to make up for"


def correlated(rows: int = 200, width: int = 24) -> torch.Tensor:
    make = torch.Generator().manual_seed(0)
    return torch.randn(rows, width, generator=make) @ torch.randn(width, width, generator=make)


@pytest.mark.oracle(seed=111, clause=4, against="closed form: least squares of the other columns")
def test_the_columns_behind_take_up_the_error_as_least_squares_would():
    x, weight = correlated(), torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    hessian = 2 * x.T @ x
    matrix, left = gptq(weight, hessian, 2, 1, 23)
    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(24, dtype=torch.float64)
    error = (weight[:, :1] - matrix.dense()).double()
    wanted = weight[:, 1:].double() + error @ damped[:1, 1:] @ torch.linalg.inv(damped[1:, 1:])
    assert torch.allclose(left.double(), wanted, atol=1e-3)
    # All columns, one after another: each takes the best weights for what is already fixed.
    rest, done = weight.double().clone(), []
    whole, _ = gptq(weight, hessian, 3, 6, 0)
    dense = whole.dense().double()
    for c in range(24):
        error = rest[:, c:c + 1] - dense[:, c:c + 1]
        done.append(float(error.abs().max()))
        if c < 23:
            inside = damped[c:, c:]
            rest[:, c + 1:] += error @ inside[:1, 1:] @ torch.linalg.inv(inside[1:, 1:])
    steps = whole.scales.repeat_interleave(6, 1)
    assert max(done) <= float(steps.max()), "every rounded column is near the one it was rounded from"
    assert all((rest[:, c] - dense[:, c]).abs().max() <= 0.51 * float(steps[:, c].max()) + 1e-3 for c in range(2))


@pytest.mark.oracle(seed=111, clause=4, against="nearest rounding")
@pytest.mark.parametrize("search", ["minmax", "mse"])
def test_its_output_error_is_below_that_of_nearest_rounding(search, pico, text):
    from luthier.techniques.methods._calibration import sequences

    model = lively(load_base(pico))
    stack = stack_of("qeft", model)
    layers, ratios = linears(model, stack), []
    batches = sequences("qeft", model, str(text), 32, 16, None)

    def visit(number, hessians):
        for first, together in SHARING.items():
            for last in together:
                weight, h = model.module.get_submodule(layers[number][last]).weight, hessians[first]
                errors = [float(((weight - q) @ h * (weight - q)).sum()) ** 0.5 for q in
                          (gptq(weight, h, 3, 16, 0, search)[0].dense(), affine(weight, 3, 16, search).dense())]
                ratios.append(errors)

    walk(model, stack, layers, batches, visit)
    ours, nearest = (sum(e[i] for e in ratios) / len(ratios) for i in (0, 1))
    assert len(ratios) == 14 and ours < 0.95 * nearest


@pytest.mark.oracle(clause="layer by layer, each layer hears what the whole model says to it", against="hooks on the model")
def test_what_a_layer_hears_is_what_the_model_says(pico, text):
    from luthier.techniques.methods._calibration import sequences

    model = load_base(pico)
    stack = stack_of("qeft", model)
    layers, batches = linears(model, stack), sequences("qeft", model, str(text), 12, 16, None)
    found, wanted = [], squares(model, layers, batches)
    walk(model, stack, layers, batches, lambda number, sums: found.append(sums))
    for sums, diagonals in zip(found, wanted, strict=True):
        for first in SHARING:
            assert torch.allclose(sums[first].diagonal(), diagonals[first], rtol=1e-3)


class Dense(nn.Module):
    """The layer as one dense matrix whose last columns are a parameter."""

    def __init__(self, layer) -> None:
        super().__init__()
        self.low, self.order, self.weak = layer.low_bits.dense(), layer.order, nn.Parameter(layer.weak.detach().clone())

    def forward(self, x):
        x = x if self.order is None else x[..., self.order]
        return x @ torch.cat([self.low, self.weak], 1).T


@pytest.mark.oracle(seed=111, clause=5, against="autograd of a dense emulation")
def test_the_gradient_of_whole_columns_is_that_of_a_dense_layer(pico, text):
    model = prepared(lively(load_base(pico)), "", text)
    other = copy.deepcopy(model.module)
    ids = torch.arange(5, 25).view(2, 10)
    for name in layers_of(other):
        parent, _, last = name.rpartition(".")
        setattr(other.get_submodule(parent), last, Dense(other.get_submodule(name)))
    for module in (model.module, other):
        module(input_ids=ids, labels=ids).loss.backward()
    dense = {n: m.weak.grad for n, m in other.named_modules() if isinstance(m, Dense)}
    for name, layer in layers_of(model.module).items():
        assert torch.allclose(layer.weak.grad, dense[name], atol=1e-6, rtol=1e-3) and layer.weak.grad.abs().max() > 0


@pytest.mark.oracle(seed=111, clause=6, against="the model before training, bit for bit")
@pytest.mark.oracle(clause="train=scales moves the scales alone", against="the model before training, bit for bit")
@pytest.mark.parametrize(("spec", "part"), [("", "weak"), (",weak=0,train=scales", "scales")])
def test_only_what_is_meant_moves(spec, part, pico, text, make_ctx):
    objective = build("objective", "supervised")
    model = prepared(load_base(pico), spec, text)
    state = {n: t.clone() for n, t in [*model.module.named_parameters(), *model.module.named_buffers()]}
    loop = make_loop(model, objective, encode(objective, model, examples(8)), make_ctx("fit"), steps=3)
    loop.train()
    now = dict([*model.module.named_parameters(), *model.module.named_buffers()])
    moved = {n for n, t in now.items() if not torch.equal(t, state[n])}
    assert moved == {f"{n}.{part}" for n in layers_of(model.module)}
    assert loop.curve[-1]["loss"] < loop.curve[0]["loss"]


@pytest.mark.oracle(seed=111, clause=7, against="closed form")
@pytest.mark.parametrize(("bits", "group", "weak"), [(4, 16, 4), (3, 64, 2), (2, 8, 8)])
def test_the_average_bits_are_the_closed_form(bits, group, weak, pico, text):
    model = load_base(pico, torch.bfloat16)
    build("method", f"qeft:calibration={text},tokens=16,bits={bits},group={group},weak={weak}").prepare(model, None)
    total = stored = 0.0
    for layer in layers_of(model.module).values():
        d, out, k = layer.in_features, layer.out_features, weak
        scales = -(-(d - k) // group) * (32 + 8)  # a float32 and a byte for each group of a row
        filled = -(-(d - k) // 8) * 8  # codes are packed by eights
        stored += out * (bits * filled + 16 * k + scales)
        total += out * d
    assert model.low_bits.average_bits(16) == pytest.approx(stored / total, rel=1e-9)


def test_a_run_says_what_it_is_and_comes_back(pico, text, make_ctx):
    inputs, said = {"base": pico, "examples": training_data(make_ctx("examples"))}, []
    ctx = make_ctx("fit", inputs)
    ctx.log = said.append
    fit = short_fit("decoder", method={"use": "qeft", "calibration": str(text), "tokens": 16, "group": 16, "weak": "5%"},
                    length={"steps": 0})
    assert fit.content() == {"qeft": {"calibration": fit.method.content()["calibration"]}}
    artifact = fit.run(inputs, ctx)
    facts = read_json(artifact.folder / "qeft.json")
    assert facts["weak"] == 4 and {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= set(facts["permuted"])
    assert any("bits a weight in 14 layers, 4 whole columns each" in line for line in said)
    assert {r.verdict for r in fit.receipts(inputs, artifact, ctx)} <= {"agrees", "not applicable"}
    model = add_tuned(load_base(pico), artifact)
    wanted = tuned_logits(model)
    low_bits.whole(model)
    assert not layers_of(model.module) and (tuned_logits(model) - wanted).abs().max() <= 1e-4, "exported as ordinary weights"


def test_weak_columns_are_those_with_large_inputs(pico, text):
    model = load_base(pico)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if name.endswith("layernorm.weight"):
                parameter[[3, 40]] = 30.0
    prepared(model, ",weak=2", text)
    assert model.low_bits.along["model.norm.weight", 0][-2:].tolist() == [3, 40]
    other = prepared(load_base(pico), ",weak=2,columns=random", text)
    assert other.low_bits.along["model.norm.weight", 0][-2:].tolist() != [3, 40]


@pytest.mark.parametrize(("spec", "said"), [
    (",weak=64", "weak = 64 keeps 64 columns whole, and pico has layers with 64 inputs"),
    (",weak=0", "weak = 0 with train = weak: whole columns are what is trained"),
    (",train=scales", r"weak = 0.03125 with train = scales"),
    (",weak=0,train=scales,bits=16", "bits = 16 has no scales"),
    (",weak=x%", "'x%' is no share"),
    (",bits=5", "bits = 5"),
])
def test_what_can_not_be_is_refused(spec, said, pico, text):
    with pytest.raises(UserError, match=said):
        prepared(load_base(pico), spec, text)


def test_a_group_that_does_not_divide_is_cut_short():
    assert affine(torch.randn(3, 10), 4, 4).scales.shape == (3, 3)


def test_little_text_and_no_file_are_refused(pico, tmp_path, make_ctx):
    path = tmp_path / "few.jsonl"
    path.write_text('{"text": "A module is a file of the language."}\n')
    with pytest.raises(UserError, match=r"calibration = .*few.jsonl' gives 1 sequences; at least 8"):
        build("method", f"qeft:calibration={path},tokens=8").prepare(load_base(pico), None)
    path.write_text("not json\n")
    with pytest.raises(UserError, match="every line must be an object with 'text'"):
        build("method", f"qeft:calibration={path}").prepare(load_base(pico), None)
    with pytest.raises(UserError, match="there is no such file"):
        short_fit("decoder", method=f"qeft:calibration={tmp_path}/none.txt").check()


@pytest.mark.parametrize("architecture", ["encoder", "encoder-decoder"])
def test_other_architectures_are_refused_with_what_would_be_permuted(architecture, bases, text):
    with pytest.raises(UserError, match=r"qeft permutes embeddings, .* q_proj, .*is no decoder with one stack"):
        prepared(load_base(bases[architecture]), "", text)


def test_what_is_not_known_is_refused(pico, text):
    model = load_base(pico)
    model.module.model.layers[0].register_parameter("gain", nn.Parameter(torch.ones(64)))
    with pytest.raises(UserError, match=r"does not know how model.layers.0.gain \(64,\) of pico lies along the 64 residual"):
        prepared(model, "", text)
    model = load_base(pico)
    model.module.model.layers[0].register_forward_pre_hook(lambda m, a: (a[0] * torch.linspace(0.1, 2, 64), *a[1:]))
    with pytest.raises(UserError, match="with its channels in another order computes something else"):
        prepared(lively(model), "", text)
    model = load_base(pico)
    with torch.no_grad():
        model.module.model.layers[0].input_layernorm.weight[0] = float("inf")
    with pytest.raises(UserError, match="qeft: the inputs of .* are not all finite|computes something else"):
        prepared(model, "", text)


def test_methods_read_no_file_by_default():
    assert Method.content(build("method", "lora")) == {}
