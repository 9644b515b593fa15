"""Stacks are found by watching, whatever the architecture calls them; stand-ins leave no trace."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from luthier.engine.layers import Skip, Unrecorded, evaluating, layer_stacks, standing_in

SIZE = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
T5_SIZE = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
BART_SIZE = {"vocab_size": 60, "d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def model_of(module, architecture):
    width = getattr(module.config, "hidden_size", None) or module.config.d_model
    return SimpleNamespace(module=module.eval(), architecture=architecture, device=torch.device("cpu"), width=width,
                           sounds=None, vocabulary=int(module.config.vocab_size))


MODELS = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**SIZE)), "decoder", [("layers", 3, "states")]),
    "gemma3": (lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZE, num_key_value_heads=1, head_dim=8)), "decoder",
               [("layers", 3, "states")]),
    "gpt2": (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=3, n_head=2, **IDS)), "decoder",
             [("h", 3, "states")]),
    "bert": (lambda: BertModel(BertConfig(**SIZE)), "encoder", [("encoder.layer", 3, "states")]),
    "distilbert": (lambda: DistilBertModel(DistilBertConfig(vocab_size=60, dim=16, hidden_dim=24, n_layers=3, n_heads=2)),
                   "encoder", [("transformer.layer", 3, "states")]),
    "albert": (lambda: AlbertModel(AlbertConfig(**SIZE, embedding_size=8)), "encoder", []),
    "t5": (lambda: T5ForConditionalGeneration(T5Config(**T5_SIZE, decoder_start_token_id=0)), "encoder-decoder",
           [("encoder.block", 2, "more"), ("decoder.block", 2, "more")]),
    "bart": (lambda: BartForConditionalGeneration(BartConfig(**BART_SIZE)), "encoder-decoder",
             [("encoder.layers", 2, "states"), ("decoder.layers", 3, "states")]),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_stacks_of_many_architectures_are_found(name):
    make, architecture, expected = MODELS[name]
    stacks = layer_stacks(model_of(make(), architecture))
    assert [(s.name, len(s.layers), s.answers) for s in stacks] == expected


def names(stack, modules):
    known = {module: name for name, module in stack.trunk.named_modules()}
    return {known[m] for m in modules}


def test_what_stands_before_and_after_a_stack_is_told_apart():
    (bert,) = layer_stacks(model_of(MODELS["bert"][0](), "encoder"))
    assert "embeddings.LayerNorm" in names(bert, bert.before) and "pooler" in names(bert, bert.after)
    assert "encoder" not in names(bert, (*bert.before, *bert.after))
    encoder, decoder = layer_stacks(model_of(MODELS["t5"][0](), "encoder-decoder"))
    assert names(encoder, encoder.after) == {"encoder.final_layer_norm"}
    assert names(decoder, decoder.after) == {"decoder.final_layer_norm"}, "the vocabulary head is not among them"


def test_a_stack_in_another_order_is_none():
    class Backwards(nn.Module):
        config = SimpleNamespace(hidden_size=4, vocab_size=60)

        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(60, 4)
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, input_ids, attention_mask):
            states = self.words(input_ids)
            for layer in reversed(self.layers):
                states = layer(states)
            return states

    assert layer_stacks(model_of(Backwards(), "encoder")) == []


@pytest.mark.parametrize(("trained", "lowest"), [
    (["layers.2.mlp.up_proj.weight"], 2), (["layers.1.input_layernorm.weight", "layers.2.mlp.up_proj.weight"], 1),
    (["norm.weight"], 3), ([], 3), (["embed_tokens.weight", "layers.2.mlp.up_proj.weight"], 0)])
def test_the_lowest_trained_layer(trained, lowest):
    (stack,) = layer_stacks(model_of(MODELS["llama"][0](), "decoder"))
    own = dict(stack.trunk.named_parameters())
    assert stack.lowest({id(own[n]) for n in trained}) == lowest


def test_stand_ins_answer_for_the_layer_and_leave_no_trace():
    module = MODELS["llama"][0]().eval()
    (stack,) = layer_stacks(model_of(module, "decoder"))
    own, weights = list(stack.layers), [n for n, _ in module.named_parameters()]
    ids = torch.arange(6)[None]
    with torch.no_grad():
        whole = stack.trunk(input_ids=ids).last_hidden_state
        known = stack.trunk(input_ids=ids, output_hidden_states=True).hidden_states[2]
        with standing_in(stack, range(2), lambda layer, i: Skip(layer, lambda: known, False)):
            skipped = stack.trunk(input_ids=ids + 7).last_hidden_state
            assert stack.layers[0].hidden_size == 16, "attributes are the layer's own"
    assert torch.equal(whole, skipped), "only what enters the last layer counts"
    with pytest.raises(ZeroDivisionError), standing_in(stack, range(2), lambda layer, i: Skip(layer, lambda: 1 / 0, False)):
        stack.trunk(input_ids=ids)
    assert list(stack.layers) == own and [n for n, _ in module.named_parameters()] == weights


def test_an_unrecorded_layer_computes_the_same_and_passes_no_gradient():
    layer = nn.Linear(4, 4)
    given = torch.ones(1, 2, 4, requires_grad=True)
    assert torch.equal(Unrecorded(layer, False)(given), layer(given))
    assert not Unrecorded(layer, False)(given).requires_grad
    marked = Unrecorded(layer, True)(given)
    assert marked.requires_grad and marked.is_leaf


def test_modes_are_put_back_one_by_one():
    module = nn.Sequential(nn.Dropout(), nn.Dropout())
    module[1].eval()
    with evaluating(list(module.modules())):
        assert not any(m.training for m in module.modules())
    assert [m.training for m in module.modules()] == [True, True, False]
