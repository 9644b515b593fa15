"""Bottleneck adapters against the base bit for bit, counts, and the formulas of the papers worked layer by layer."""

from __future__ import annotations

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.engine.models import add_tuned, load_base
from tests.contracts import dummies
from tests.contracts.workbench import short_fit, training_data, tuned_logits
from tests.recorded import as_recorded, recorded, tiny_bert

STYLES = ("houlsby", "pfeiffer", "parallel")
IDS = torch.arange(5, 25).view(2, 10)


def fresh(base, spec: str, seed: int = 0):
    torch.manual_seed(seed)
    model = build("method", spec).prepare(load_base(base), None)
    model.module.eval()
    return model


def states(model) -> torch.Tensor:
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    if model.architecture == "encoder-decoder":
        given["decoder_input_ids"] = IDS
    out = model.module(**given)
    return out.last_hidden_state if model.architecture == "encoder" else out.logits


def grown(model):
    """The same model with adapters of ordinary size, so that what they do shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "bottleneck_layers" in name:
                parameter.normal_(0, 0.3)
    return model


@pytest.mark.oracle(seed=43, clause=1, against="the base itself, bit for bit")
@pytest.mark.parametrize("architecture", ["decoder", "encoder", "encoder-decoder"])
@pytest.mark.parametrize("style", STYLES)
def test_with_no_way_up_it_is_the_base(style, architecture, bases):
    with torch.no_grad():
        base = states(load_base(bases[architecture]))
        assert torch.equal(states(fresh(bases[architecture], f"adapter:zero_up=true,style={style}")), base)
        assert not torch.equal(states(fresh(bases[architecture], f"adapter:style={style}")), base)


@pytest.mark.oracle(seed=43, clause=2, against="closed form: the square of the deviation")
def test_the_distance_from_the_base_is_the_square_of_the_start(pico_encoder):
    with torch.no_grad():
        base = states(load_base(pico_encoder))
        far, near = ((states(fresh(pico_encoder, f"adapter:init={init},activation=relu")) - base).norm()
                     for init in (0.01, 0.005))
    assert float(far / near) == pytest.approx(4, rel=0.05)


@pytest.mark.oracle(seed=43, clause=3, against="closed form: L * 2 * (2 m d + d + m) + norms")
@pytest.mark.parametrize(("spec", "adapters", "trains_norms"), [
    ("adapter:bottleneck=3", 4, True), ("adapter:style=pfeiffer,reduction=16", 2, False),
    ("adapter:style=parallel,bottleneck=5", 2, False), ("adapter:layers=[1]", 2, True)])
def test_the_number_of_trained_weights_is_the_closed_form(spec, adapters, trains_norms, pico_encoder):
    method, model = build("method", spec), fresh(pico_encoder, spec)
    size, width = method.bottleneck or model.width // method.reduction, model.width
    wanted = adapters * (2 * size * width + width + size) + (5 * 2 * width if trains_norms else 0)
    assert sum(p.numel() for p in model.module.parameters() if p.requires_grad) == wanted


@pytest.mark.oracle(seed=43, clause=4, against="the trained model in memory")
@pytest.mark.oracle(seed=43, clause=6, against="the base itself, bit for bit")
@pytest.mark.parametrize("style", STYLES)
def test_saved_loaded_and_switched_off(style, pico_encoder, make_ctx):
    inputs = {"base": pico_encoder, "examples": training_data(make_ctx("examples"))}
    fit = short_fit("encoder", method=f"adapter:style={style}", regularizers=("dummy-spy",), length={"steps": 3})
    artifact = fit.run(inputs, make_ctx("fit", inputs))
    model = add_tuned(load_base(pico_encoder), artifact)
    assert torch.equal(tuned_logits(model), dummies.SPIED["logits"])
    with torch.no_grad():
        assert not torch.equal(states(model), states(load_base(pico_encoder)))
        with model.module.disable_adapter():
            assert torch.equal(states(model), states(load_base(pico_encoder)))


# --- the formulas, layer by layer ----------------------------------------------------------------------------------

def f(bottleneck, h: torch.Tensor) -> torch.Tensor:
    """W_up gelu(W_down h + b_down) + b_up, from the weights alone."""
    inner = torch.nn.functional.gelu(h @ bottleneck.down.weight.T + bottleneck.down.bias)
    return inner @ bottleneck.up.weight.T + bottleneck.up.bias


def bert_by_hand(base, adapters: dict[str, torch.nn.Module], style: str) -> torch.Tensor:
    """The states of the pico encoder with adapters, from the papers' equations."""
    x = base.embeddings(IDS)
    for i, layer in enumerate(base.encoder.layer):
        at = f"encoder.layer.{i}."
        h = layer.attention.output.dense(layer.attention.self(x)[0])
        norm = layer.attention.output.LayerNorm
        x = norm(x + h + f(adapters[at + "attention.output.dropout"], h)) if style == "houlsby" else norm(x + h)
        h, norm = layer.output.dense(layer.intermediate(x)), layer.output.LayerNorm
        if style == "houlsby":
            x = norm(x + h + f(adapters[at + "output.dropout"], h))
        elif style == "pfeiffer":
            x = norm(x + h + f(adapters[at + "output.LayerNorm"], norm(x + h)))
        else:
            x = norm(x + h + 4 * f(adapters[at + "output"], x))
    return x


def adapters_of(model) -> dict[str, torch.nn.Module]:
    return {n.removeprefix("base_model.model."): m.bottleneck_layers["default"]
            for n, m in model.module.named_modules() if type(m).__name__ == "Bottlenecked"}


@pytest.mark.oracle(seed=43, clause=5, against="closed form: the papers' equations, by hand on BERT")
@pytest.mark.parametrize("style", STYLES)
def test_states_and_gradients_are_those_of_the_formula(style, pico_encoder):
    model = grown(fresh(pico_encoder, f"adapter:style={style},train_norms=false"))
    weights = [p for p in model.module.parameters() if p.requires_grad]
    base = load_base(pico_encoder)
    assert len(weights) == (16 if style == "houlsby" else 8)
    ours, theirs = states(model), bert_by_hand(base.module, adapters_of(model), style)
    assert (ours - theirs).abs().max() <= 1e-5 and (theirs - states(base)).abs().max() > 0.1
    aim = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    for one, other in zip(torch.autograd.grad((ours * aim).sum(), weights), torch.autograd.grad((theirs * aim).sum(), weights),
                          strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1)


@pytest.mark.oracle(seed=43, clause=5, against="AdapterHub's adapters 1.3.0")
@pytest.mark.parametrize("record", recorded("adapters_hub")["bottlenecks"], ids=lambda r: r["method"].partition(":")[2])
def test_states_and_gradients_are_adapterhub_s(record, pico_encoder):
    """Weights in the order of the model: place by place, down before up, weight before bias."""
    model = build("method", record["method"]).prepare(tiny_bert(pico_encoder), None)
    weights = [p for f in adapters_of(model).values() for p in (f.down.weight, f.down.bias, f.up.weight, f.up.bias)]
    assert len(weights) == sum(p.requires_grad for p in model.module.parameters())
    assert as_recorded(model, weights, record) <= 2e-6


@pytest.mark.oracle(seed=43, clause=5, against="closed form: the papers' equations, by hand on Llama")
@pytest.mark.parametrize("style", STYLES)
def test_a_model_that_normalises_first_follows_its_formula(style, pico):
    model = grown(fresh(pico, f"adapter:style={style},train_norms=false"))
    adapters, base = adapters_of(model), load_base(pico).module.model
    x = base.embed_tokens(IDS)
    positions = torch.arange(IDS.shape[1])[None]
    mask = torch.full((IDS.shape[1],) * 2, float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        for i, layer in enumerate(base.layers):
            at = f"model.layers.{i}"
            h = layer.self_attn(layer.input_layernorm(x), position_embeddings=base.rotary_emb(x, positions),
                                attention_mask=mask)[0]
            x = x + h + (f(adapters[at + ".self_attn.o_proj"], h) if style == "houlsby" else 0)
            read = layer.post_attention_layernorm(x)
            h = layer.mlp(read)
            if style == "pfeiffer":
                x = x + h + f(adapters[at], x + h)
            else:
                x = x + h + (f(adapters[at + ".mlp"], h) if style == "houlsby" else 4 * f(adapters[at + ".mlp"], read))
        wanted = load_base(pico).module.lm_head(base.norm(x))
        assert (states(model) - wanted).abs().max() <= 1e-4


def test_what_can_not_be_is_refused(pico, pico_encoder):
    with pytest.raises(UserError, match="there is no layer 2; pico has 0 to 1"):
        fresh(pico, "adapter:layers=[0, 2]")
    with pytest.raises(UserError, match="not linear and can't be merged into the base's weights"):
        fresh(pico_encoder, "adapter").module.merge_and_unload()
    with pytest.raises(UserError, match="can't reach encoder.layer.0.output.LayerNorm: an adapter of style pfeiffer"):
        fresh(pico_encoder, "adapter:style=pfeiffer,train_norms=true")
    from transformers import GPT2Config, GPT2LMHeadModel

    other = load_base(pico)
    other.module = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=16, n_layer=2, n_head=2)).eval()
    with pytest.raises(UserError, match="the layers of pico have no known layout. They have: .*attn.c_proj"):
        build("method", "adapter").prepare(other, None)


def test_a_bottleneck_as_wide_as_the_model_is_said(pico, make_ctx):
    said = []
    build("method", "adapter:bottleneck=64").prepare(load_base(pico), make_ctx("fit", log=said.append))
    assert "a bottleneck of 64 is no bottleneck, the model's width is 64" in said[0]
