"""Small models with their last layers trained, and a short training of them, for the tests of frozen layers."""

from __future__ import annotations

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from luthier.core.component import build
from luthier.core.kinds import Optimizer
from luthier.engine.frozen import Frozen
from luthier.engine.models import Model
from tests.contracts.workbench import encode, examples, make_loop


class Descent(Optimizer, name="dummy-descent"):
    """Plain descent: a weight moves as its gradient says. (Adam divides by its size, and so shows rounding alone where
    a gradient is nothing but rounding, as that of a key's bias.)"""

    def make(self, groups, learning_rate):
        return torch.optim.SGD(groups, lr=10 * learning_rate)


SIZE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "pad_token_id": 0}


def llama(words):
    return LlamaForCausalLM(LlamaConfig(vocab_size=words, num_hidden_layers=4, num_key_value_heads=2, **SIZE))


def gemma3(words):
    """Windows shorter than the rows, scaled embeddings, tied vocabulary."""
    return Gemma3ForCausalLM(Gemma3TextConfig(
        vocab_size=words, num_hidden_layers=6, num_key_value_heads=1, head_dim=16, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 3, **SIZE))


def bert(words):
    return BertModel(BertConfig(vocab_size=words, num_hidden_layers=4, hidden_dropout_prob=0.0,
                                attention_probs_dropout_prob=0.0, **SIZE))


MODELS = {"llama": (llama, "decoder"), "gemma3": (gemma3, "decoder"), "bert": (bert, "encoder")}


def fresh_from(bases):
    """`fresh(name)`: a model whose last layers are trained, the same numbers at each call."""
    def fresh(name: str, last: int = 2) -> Model:
        build_module, architecture = MODELS[name]
        base = bases[architecture]
        tokenizer = AutoTokenizer.from_pretrained(base.meta["path"])
        torch.manual_seed(7)
        module = build_module(len(tokenizer)).eval().requires_grad_(False)
        model = Model(module, tokenizer, architecture, "test", "test", 256, base)
        return build("method", f"layer-freezing:train_last={last}").prepare(model, None)

    return fresh


def loop_of(model, ctx, mode, *, count=10, steps=6, epochs=2.0, packed=None, hooks=(), objective=None,
            features=None):
    """Two epochs over ten rows in batches of four."""
    torch.manual_seed(1)
    if model.architecture == "encoder":
        objective = objective or build("objective", "classify")
        model.heads["task"] = build("head", "linear:dropout=0").build(model, ["thing", "word"])
    objective = objective or build("objective", "supervised")
    features = features or encode(objective, model, examples(count))
    loop = make_loop(model, objective, features, ctx, steps=steps, hooks=hooks, checkpoint_seconds=99,
                     optimizer="dummy-descent")
    if packed is not None:
        loop.run.packs = dict.fromkeys(loop.run.packs, packed)
    loop.run.frozen = Frozen(loop.run, loop.tasks, ctx, mode, epochs, lambda: loop.hooks)
    return loop


def trained(model):
    return {n: p.detach().clone() for n, p in model.module.named_parameters()}


def losses(loop):
    return [r["loss"] for r in loop.curve]
