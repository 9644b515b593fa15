"""4-bit bases: refused in words where they can't be, another base where they can, and what transformers is asked."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import LlamaForCausalLM

from luthier.core.errors import UserError
from luthier.engine import quantized
from luthier.engine.models import load_base
from luthier.engine.steps.base import Base
from tests.contracts.workbench import short_fit, training_data


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_is_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"quantize: nf4 of pico: it needs a GPU with CUDA.*--method lora .* smaller --base"):
        Base(model="pico", quantize="nf4").check()
    Base(model="pico").check()


def test_without_the_package_it_says_how_to_have_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert quantized.missing() == 'it needs the package bitsandbytes: pip install "luthier[qlora]"'
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert quantized.missing() == ""


@pytest.fixture
def low(make_ctx, monkeypatch, pico):
    """A base in 4 bits on a machine that is said to have what it takes; what is asked of transformers is written down."""
    asked = []
    plain = LlamaForCausalLM.from_pretrained.__func__

    def load(cls, folder, *, quantization_config=None, device_map=None, **rest):
        asked.append((quantization_config, device_map))
        return plain(cls, folder, **rest)

    monkeypatch.setattr(quantized, "missing", lambda: "")
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(load))
    base = Base(model="pico", quantize="nf4")
    base.check()
    return base.run({}, make_ctx("low")), asked


def test_a_quantised_base_is_another_base_and_says_so(low, pico):
    base, _ = low
    assert base.identity != pico.identity and base.meta["quantize"] == "nf4"
    assert base.meta["note"].endswith("4 bits (NF4)") and "quantize" not in pico.meta


def test_it_is_loaded_as_the_paper_says(low, pico):
    base, asked = low
    load_base(base, torch.bfloat16, "cpu")
    load_base(pico, torch.bfloat16, "cpu")
    config, place = asked[0]
    assert place == {"": "cpu"} and asked[1] == (None, None)
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_only_adapters_are_trained_on_it(low, make_ctx):
    inputs = {"base": low[0], "examples": training_data(make_ctx("examples"))}
    with pytest.raises(UserError, match="Method 'full' moves the base's own weights, which nf4 freezes. Use a method"):
        short_fit("decoder", method="full").run(inputs, make_ctx("full", inputs))
    artifact = short_fit("decoder").run(inputs, make_ctx("lora", inputs))
    assert artifact.kind == "adapter" and artifact.meta["base"]["note"].endswith("4 bits (NF4)")
