"""Prefixes against prepended text, PEFT's own prefixes, and attention written out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import PrefixTuningConfig, TaskType, get_peft_model

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.engine.models import Model, add_tuned, load_base
from luthier.techniques.methods._prefixed import Maker, prefixed
from tests.contracts import dummies
from tests.contracts.workbench import short_fit, training_data, tuned_logits
from tests.recorded import as_recorded, recorded, tiny_bert, wave

TEXT = "the class of the module is"
IDS = torch.tensor([[7, 8, 9, 10, 11, 12]])


def prepared(base, spec, ctx=None):
    torch.manual_seed(0)
    return build("method", spec).prepare(load_base(base) if not isinstance(base, Model) else base, ctx)


def said(module, **given):
    module.eval()
    with torch.no_grad():
        return module(**given).logits


@pytest.fixture(scope="module")
def others(pico, tmp_path_factory):
    """Decoders with learned positions, and with sliding windows, that read with pico's tokenizer."""
    from transformers import GemmaConfig, GemmaForCausalLM, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = load_base(pico).tokenizer
    size = len(tokenizer)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    gemma = GemmaForCausalLM(GemmaConfig(vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                         num_attention_heads=4, num_key_value_heads=1, head_dim=16, pad_token_id=0))
    return {n: Model(m.eval().requires_grad_(False), tokenizer, "decoder", n, n, 64, pico)
            for n, m in (("gpt2", gpt2), ("gemma", gemma))}


def fresh(which, pico, others):
    import copy

    return load_base(pico) if which == "llama" else copy.deepcopy(others[which])


@pytest.mark.oracle(seed=86, clause=1, against="prepending the text itself")
@pytest.mark.parametrize("which", ["llama", "gpt2", "gemma"])
@pytest.mark.parametrize("padded", [0, 2])
def test_a_prefix_of_a_texts_own_keys_is_that_text(which, padded, pico, others):
    model = fresh(which, pico, others)
    first = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    mask = torch.tensor([[0] * padded + [1] * (6 - padded)])
    whole = torch.cat([torch.tensor([first]), IDS], 1)
    places = (torch.cat([torch.ones(1, len(first), dtype=torch.long), mask], 1).cumsum(1) - 1).clamp(min=0)
    wanted = said(fresh(which, pico, others).module, input_ids=whole, position_ids=places,
                  attention_mask=torch.cat([torch.ones(1, len(first), dtype=torch.long), mask], 1))[:, len(first):]
    tuned = prepared(model, f"prefix-tuning:tokens={len(first)},text={TEXT}")
    given = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0), "attention_mask": mask} if padded else {}
    found = said(tuned.module, input_ids=IDS, **given)
    assert (found[:, padded:] - wanted[:, padded:]).abs().max() <= 1e-4
    assert (found - said(fresh(which, pico, others).module, input_ids=IDS)).abs().max() > 1e-3
    assert (said(tuned.module, inputs_embeds=tuned.module.get_input_embeddings()(IDS), **given)
            - found)[:, padded:].abs().max() <= 1e-5


@pytest.mark.oracle(seed=86, clause=1, against="prepending the text itself, written token by token")
def test_it_holds_while_an_answer_is_written(pico, engine):
    first = load_base(pico).tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    tuned = prepared(pico, f"prefix-tuning:tokens={len(first)},text={TEXT}")
    tuned.module.eval().requires_grad_(False)
    for prompts in ([[7, 8, 9]], [[7, 8, 9], [11, 12, 13, 14, 15]]):
        made = engine.generate(tuned, prompts, "greedy:max_new_tokens=6")
        wanted = engine.generate(load_base(pico), [first + p for p in prompts], "greedy:max_new_tokens=6")
        assert [m.text for m in made] == [w.text for w in wanted]


@pytest.mark.oracle(seed=86, clause=1, against="peft: PrefixTuning with the same table")
def test_it_computes_what_pefts_prefix_computes(pico):
    ours = prepared(pico, "prefix-tuning:tokens=5")
    base = load_base(pico).module
    theirs = get_peft_model(base, PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=5))
    layers = prefixed(ours.module)
    names = [f"model.layers.{i}.self_attn" for i in range(2)]
    table = torch.cat([x for n in names for x in (layers[n].prefix.keys, layers[n].prefix.values)], 1)
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(table)
    assert (said(ours.module, input_ids=IDS) - said(theirs, input_ids=IDS)).abs().max() <= 1e-5


@pytest.mark.oracle(seed=86, clause=1, against="AdapterHub's adapters 1.3.0")
@pytest.mark.parametrize("record", recorded("adapters_hub")["prefixes"], ids=lambda r: r["method"])
def test_states_and_gradients_are_adapterhub_s(record, pico_encoder):
    """Its numbers are one vector: by token, layer, key before value. Ours are a pair a layer, or an MLP as it has it."""
    model = build("method", record["method"]).prepare(tiny_bert(pico_encoder), None)
    (maker,) = [m for m in model.module.modules() if isinstance(m, Maker)] or [None]
    if maker is not None:
        weights = [maker.start, maker.first.weight, maker.first.bias, maker.second.weight, maker.second.bias]
        assert as_recorded(model, weights, record) <= 2e-6
        return
    whole = wave(3, 2, 2, 16).requires_grad_(True)  # tokens, layers, key and value, width
    for n, layer in enumerate(prefixed(model.module).values()):
        layer.table = lambda n=n, prefix=layer.prefix: prefix.shaped(whole[:, n, 0], whole[:, n, 1])
    assert as_recorded(model, [whole], record) <= 2e-6


def attended(q, k, v, scale, bias=0.0):
    """Soft-max attention of one head after another, [heads, queries, width]."""
    return torch.stack([torch.softmax(scale * q[h] @ k[h].T + (bias[h] if torch.is_tensor(bias) else bias), -1) @ v[h]
                        for h in range(len(q))])


@pytest.mark.oracle(seed=86, clause=1, against="attention by hand: encoder and cross-attention, each alone")
@pytest.mark.parametrize("sites, name", [("enc", "encoder.block.1.layer.0.SelfAttention"),
                                         ("cross", "decoder.block.1.layer.1.EncDecAttention"),
                                         ("dec", "decoder.block.1.layer.0.SelfAttention")])
def test_prefixes_of_an_encoder_decoder_by_hand(sites, name, pico_encoder_decoder):
    tuned = prepared(pico_encoder_decoder, f"prefix-tuning:tokens=3,sites={sites}")
    layers = prefixed(tuned.module)
    assert len(layers) == 2 and name in layers
    around, kept = layers[name], {}
    inner = around.base_layer
    for part in ("q", "k", "v", "o"):
        getattr(inner, part).register_forward_hook(lambda m, given, out, part=part: kept.__setitem__(part, (given[0], out)))
    inner.register_forward_hook(lambda m, given, out: kept.__setitem__("bias", out[1]))
    with torch.no_grad():
        tuned.module.eval()(input_ids=IDS, decoder_input_ids=IDS[:, :4])
        heads = inner.n_heads
        q, k, v = (kept[p][1][0].unflatten(-1, (heads, -1)).transpose(0, 1) for p in "qkv")
        own, values = around.prefix()
        bias = kept["bias"][0].expand(heads, q.shape[1], -1)
        if sites == "dec":
            bias = bias + torch.full(bias.shape[1:], float("-inf")).triu(1)
        bias = torch.cat([torch.zeros(heads, q.shape[1], 3), bias], -1)
        wanted = attended(q, torch.cat([own, k], 1), torch.cat([values, v], 1), inner.scaling, bias)
    assert torch.allclose(kept["o"][0][0], wanted.transpose(0, 1).flatten(1), atol=1e-5)


@pytest.mark.oracle(seed=86, clause=1, against="attention by hand: an encoder")
def test_prefixes_of_an_encoder_by_hand(pico_encoder):
    tuned = prepared(pico_encoder, "prefix-tuning:tokens=3")
    around, kept = prefixed(tuned.module)["encoder.layer.1.attention.self"], {}
    for part in ("query", "key", "value"):
        getattr(around.base_layer, part).register_forward_hook(lambda m, given, out, part=part: kept.__setitem__(part, out))
    around.base_layer.register_forward_hook(lambda m, given, out: kept.__setitem__("out", out[0]))
    with torch.no_grad():
        tuned.module.eval()(input_ids=IDS, attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]]))
        q, k, v = (kept[p][0].unflatten(-1, (4, -1)).transpose(0, 1) for p in ("query", "key", "value"))
        own, values = around.prefix()
        wanted = attended(q, torch.cat([own, k[:, :4]], 1), torch.cat([values, v[:, :4]], 1), k.shape[-1] ** -0.5)
    assert torch.allclose(kept["out"][0][:4], wanted.transpose(0, 1).flatten(1)[:4], atol=1e-5)


def fitted(make_ctx, base, architecture, spec, **changed):
    inputs = {"base": base, "examples": training_data(make_ctx("examples"))}
    fit = short_fit(architecture, method=spec, regularizers=("dummy-spy",), **{"length": {"steps": 4}, **changed})
    return fit.run(inputs, make_ctx("fit", inputs)), inputs


@pytest.mark.oracle(seed=86, clause=2, against="the model with its MLP, before it is dropped")
@pytest.mark.parametrize("architecture", ["decoder", "encoder-decoder"])
def test_what_the_mlp_gives_is_what_is_kept(architecture, make_ctx, bases):
    model = prepared(bases[architecture], "prefix-tuning:tokens=4,mlp_hidden=8")
    layers = prefixed(model.module)
    makers = [m for m in model.module.modules() if isinstance(m, Maker)]
    assert len(makers) == (1 if architecture == "decoder" else 3)
    assert not any(p.prefix.keys.requires_grad for p in layers.values())
    with_mlp = tuned_logits(model)
    build("method", "prefix-tuning").finish(model, None)
    assert not any(isinstance(m, Maker) for m in model.module.modules())
    assert (tuned_logits(model) - with_mlp).abs().max() <= 1e-5
    artifact, _ = fitted(make_ctx, bases[architecture], architecture, "prefix-tuning:tokens=4,mlp_hidden=8")
    seen = dict(dummies.SPIED)
    assert any("prefix_maker" in n for n in seen["trained"])
    assert (tuned_logits(add_tuned(load_base(bases[architecture]), artifact)) - seen["logits"]).abs().max() <= 1e-5


@pytest.mark.oracle(seed=86, clause=2, against="the text's own keys and values: least squares has no rest")
def test_an_mlp_that_is_fitted_to_a_text_begins_as_that_text(pico):
    plain = prepared(pico, f"prefix-tuning:tokens=5,text={TEXT}")
    made = prepared(pico, f"prefix-tuning:tokens=5,text={TEXT},mlp_hidden=16")
    for name, layer in prefixed(made.module).items():
        for a, b in zip(layer.table(), prefixed(plain.module)[name].table(), strict=True):
            assert torch.allclose(a, b, atol=1e-4)
    assert (said(made.module, input_ids=IDS) - said(plain.module, input_ids=IDS)).abs().max() <= 1e-3


@pytest.mark.oracle(seed=86, clause=3, against="the base itself, bit for bit")
@pytest.mark.oracle(seed=86, clause=4, against="closed form: tokens x 2 x layers x key heads x head width")
@pytest.mark.parametrize("spec", ["prefix-tuning:tokens=4", "prefix-tuning:tokens=4,mlp_hidden=8"])
def test_the_base_stays_and_as_many_numbers_are_kept(spec, make_ctx, pico):
    artifact, _ = fitted(make_ctx, pico, "decoder", spec)
    base, model = load_base(pico), add_tuned(load_base(pico), artifact)
    config = base.module.config
    assert artifact.meta["fit"]["trained_parameters"] == 4 * 2 * 2 * config.num_key_value_heads * 16
    assert config.num_key_value_heads * 16 < config.hidden_size, "grouped queries: not the model's width"
    assert model.taken == 4
    own, now = base.module.state_dict(), model.module.unload().state_dict()
    assert own.keys() == now.keys() and all(torch.equal(own[n], now[n]) for n in own)
    plain = said(base.module, input_ids=IDS)
    assert torch.equal(said(model.module.get_base_model(), input_ids=IDS), plain)


def test_it_comes_off_for_a_moment(pico):
    from luthier.engine.roles import adapter_comes_off, adapter_off

    tuned, plain = prepared(pico, "prefix-tuning"), said(load_base(pico).module, input_ids=IDS)
    with adapter_off(tuned):
        assert torch.equal(said(tuned.module, input_ids=IDS), plain)
    assert adapter_comes_off(tuned) and not torch.equal(said(tuned.module, input_ids=IDS), plain)


def test_drawn_tokens_are_the_same_each_time_and_short_texts_are_repeated_and_said(make_ctx, pico):
    ctx, told = make_ctx("m"), []
    ctx.log = told.append
    one, two = (next(iter(prefixed(prepared(pico, "prefix-tuning:tokens=3", ctx).module).values())).prefix for _ in range(2))
    assert torch.equal(one.keys, two.keys) and not told
    prepared(pico, f"prefix-tuning:tokens=20,text={TEXT}", ctx)
    prepared(pico, f"prefix-tuning:tokens=2,text={TEXT}", ctx)
    assert "and the prompt 20: it is repeated" in told[0] and "and the prompt 2: the rest is left out" in told[1]


@pytest.mark.parametrize("sites", ["enc", "cross", "dec+cross"])
def test_sites_that_a_decoder_does_not_have_are_refused(sites, pico):
    said = f"sites = {sites.replace('+', '.')}, and pico.* has no (enc|cross) attention; it has dec"
    with pytest.raises(UserError, match=said):
        prepared(pico, f"prefix-tuning:sites={sites}")


def test_what_can_not_be_is_refused(pico, make_ctx):
    with pytest.raises(UserError, match="sites are enc, dec, cross, joined by"):
        build("method", "prefix-tuning:sites=middle")
    with pytest.raises(UserError, match="has no tokens"):
        prepared(pico, {"use": "prefix-tuning", "text": " "})
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    with pytest.raises(UserError, match="4090 tokens and the longest row's .* are more than the 4096 positions of pico"):
        short_fit("decoder", method="prefix-tuning:tokens=4090").run(inputs, make_ctx("fit", inputs))
    with pytest.raises(UserError, match="can't be merged"):
        prepared(pico, "prefix-tuning").module.merge_and_unload()
    deaf = SimpleNamespace(set_attn_implementation=lambda name: (_ for _ in ()).throw(ValueError("only eager")))
    from luthier.techniques.methods._prefixed import reach

    with pytest.raises(UserError, match="the attention of odd can't be reached: only eager"):
        reach(deaf, "odd")
