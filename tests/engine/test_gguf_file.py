"""GGUF files: against the gguf package's own reader and transformers', and what can't be written is refused in words."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from luthier.core.errors import UserError
from luthier.engine import gguf_file

gguf = pytest.importorskip("gguf")


@pytest.mark.oracle(clause="q8_0", against="gguf.quantize and gguf.dequantize")
def test_rounding_is_that_of_the_file_format():
    weight = torch.randn(8, 96, generator=torch.Generator().manual_seed(0))
    weight[0, :32] = 0
    weight[1, :32] = torch.linspace(-127, 127, 32)  # halves of a step
    kind = gguf.GGMLQuantizationType.Q8_0
    theirs = gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind)
    assert torch.equal(gguf_file.rounded(weight), torch.from_numpy(theirs))
    # Weights of few bits, as those of a model that was quantised before: many lie on halves.
    coarse = (torch.randint(-8, 8, (64, 256), generator=torch.Generator().manual_seed(1)) * 0.0371).bfloat16().float()
    assert torch.equal(gguf_file.rounded(coarse), torch.from_numpy(gguf.dequantize(gguf.quantize(coarse.numpy(), kind), kind)))
    assert gguf_file.rounded(weight[0]) is not None and torch.equal(gguf_file.rounded(weight[0]), weight[0])
    odd = torch.randn(4, 20)
    assert torch.equal(gguf_file.rounded(odd), odd.half().float())


def test_a_tiny_gemma_comes_back_as_it_was(tmp_path, engine, pico):
    from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, GgufConfig

    tokenizer = engine.tokenizer(pico)
    torch.manual_seed(0)
    config = Gemma3TextConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                              num_attention_heads=4, num_key_value_heads=2, head_dim=32, sliding_window=8,
                              layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=32)
    model = Gemma3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.normal_(0, 0.3)
            weight.copy_(gguf_file.rounded(weight))
    assert gguf_file.write(model, tokenizer, tmp_path / "model.gguf", "tiny") == 0
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32,
                                                      quantization_config=GgufConfig(dequantize=True)).eval()
    for name, weight in again.state_dict().items():
        assert torch.allclose(weight, model.state_dict()[name], atol=1e-5), name


def test_queries_and_keys_of_a_llama_are_interleaved():
    """By hand: one head of four rows a, b, c, d, of which a turns with c and b with d, is written a, c, b, d."""
    config = SimpleNamespace(model_type="llama", num_attention_heads=1, num_key_value_heads=1, tie_word_embeddings=True)
    model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(1, 4, bias=False)})
    with torch.no_grad():
        model["q_proj"].weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    (name, value), = gguf_file._tensors(model, config)
    assert name == "q_proj.weight" and np.array_equal(value, [[1], [3], [2], [4]])


def test_scores_order_tokens_as_merges_do():
    core = {"model": {"type": "BPE", "byte_fallback": True, "merges": [["a", "b"], ["ab", "c"]]}, "pre_tokenizer": None,
            "added_tokens": [{"id": 0, "special": True}, {"id": 5, "special": False}]}
    words = {"<bos>": 0, "<0x0A>": 1, "a": 2, "ab": 3, "abc": 4, "own": 5}
    tokenizer: Any = SimpleNamespace(is_fast=True, backend_tokenizer=SimpleNamespace(to_str=lambda: json.dumps(core)),
                                     get_vocab=lambda: words)
    found = gguf_file._vocabulary(tokenizer, 8)
    assert found["model"] == "llama" and found["tokens"][6:] == ["[PAD6]", "[PAD7]"]
    assert found["types"] == [3, 6, 1, 1, 1, 4, 4, 4]
    assert found["scores"][3] > found["scores"][4] > found["scores"][2] == -2


@pytest.mark.parametrize(("changed", "says"), [
    ({"model_type": "gpt2"}, "of type gpt2 can't be written. Written are Gemma 3"),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, r"scaled \(llama3\)"),
    ({"attention_bias": True}, "Llama with biases"),
])
def test_what_can_not_be_written_is_refused(engine, pico, changed, says):
    config = SimpleNamespace(**{"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
                                "vocab_size": 1024, "attention_bias": False, "mlp_bias": False, **changed})
    with pytest.raises(UserError, match=says):
        gguf_file.check(config, engine.tokenizer(pico))


@pytest.mark.parametrize(("pre", "name"), [
    ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, "gpt-2"),
    ({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": gguf_file._LLAMA3}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}, "llama-bpe"),
])
def test_splits_that_llamacpp_knows(pre, name):
    assert gguf_file._split(pre) == name


def test_a_split_without_a_name_is_refused():
    with pytest.raises(UserError, match="no name for here"):
        gguf_file._split({"type": "Whitespace"})
