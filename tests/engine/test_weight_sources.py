"""Weights that are read tensor by tensor are those of the loaded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import HRAConfig, IA3Config, LoHaConfig, LoraConfig, OFTConfig, PromptTuningConfig, VeraConfig, get_peft_model
from safetensors.torch import save_file

from luthier.core.errors import UserError
from luthier.engine.deltas import FILE
from luthier.engine.models import auto_class, folder_of
from luthier.engine.weight_sources import Adapted, Changed, Stored


def trained(base: Any, config: Any, folder: Path, architecture: str = "decoder") -> Any:
    """A PEFT model whose adapter is not zero, saved in `folder`."""
    wrapped = get_peft_model(auto_class(folder_of(base)).from_pretrained(folder_of(base)), config)
    rng = torch.Generator().manual_seed(5)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    wrapped.save_pretrained(folder)
    return wrapped


CONFIGS = {
    "lora": LoraConfig(r=4, target_modules="all-linear"),
    "dora": LoraConfig(r=4, target_modules=["q_proj"], use_dora=True),
    "rslora": LoraConfig(r=4, lora_alpha=3, target_modules=["q_proj", "up_proj"], use_rslora=True, rank_pattern={"q_proj": 2}),
    "loha": LoHaConfig(r=4, target_modules=["v_proj"]), "ia3": IA3Config(target_modules=["v_proj"], feedforward_modules=[]),
    "oft": OFTConfig(oft_block_size=0, r=4, target_modules=["q_proj"]), "hra": HRAConfig(r=4, target_modules=["q_proj"]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_read_layer_by_layer_is_the_merged_model(name, pico, tmp_path):
    place = folder_of(pico)
    merged = trained(pico, CONFIGS[name], tmp_path / "adapter").merge_and_unload().state_dict()
    read = Adapted(Stored(place), place, auto_class(place), tmp_path / "adapter")
    for _ in range(2):  # what was read once must not stay in the layers
        assert all(torch.allclose(read.read(n).float(), merged[n], atol=1e-7) for n in read.specs)
    changed = [n for n in read.specs if not torch.equal(read.read(n), Stored(place).read(n))]
    assert changed and all(n in read._layers for n in changed)


@pytest.mark.parametrize("architecture", ["encoder", "encoder-decoder"])
def test_other_architectures(architecture, bases, tmp_path):
    base, place = bases[architecture], folder_of(bases[architecture])
    targets = ["query", "value"] if architecture == "encoder" else ["q", "wo"]
    wrapped = trained(base, LoraConfig(r=4, target_modules=targets), tmp_path / "a", architecture)
    merged = wrapped.merge_and_unload().state_dict()
    read = Adapted(Stored(place), place, auto_class(place), tmp_path / "a")
    assert len(read._layers) >= 4 and all(torch.allclose(read.read(n), merged[n], atol=1e-7) for n in read.specs)


@pytest.mark.parametrize(("config", "said"), [
    (PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "learned prompt"),
    (LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]), "whole modules of its own"),
    (VeraConfig(r=2, target_modules=["q_proj"]), "parts that its layers share"),
])
def test_what_has_no_change_of_single_layers_is_refused(config, said, pico, tmp_path):
    trained(pico, config, tmp_path / "adapter")
    with pytest.raises(UserError, match=said):
        Adapted(Stored(folder_of(pico)), folder_of(pico), auto_class(folder_of(pico)), tmp_path / "adapter")


def test_a_delta_takes_the_place_of_what_it_names(pico, tmp_path):
    stored = Stored(folder_of(pico))
    norm, matrix = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"
    save_file({norm: torch.full((64,), 2.0), f"{matrix}:at": torch.tensor([0, 65]),
               f"{matrix}:values": torch.tensor([7.0, 8.0])}, tmp_path / FILE)
    read = Changed(stored, tmp_path)
    found, was = read.read(matrix), stored.read(matrix)
    assert read.read(norm).eq(2).all() and found[0, 0] == 7 and found[1, 1] == 8
    assert int((found != was).sum()) == 2 and torch.equal(read.read("lm_head.weight"), stored.read("lm_head.weight"))


def test_a_delta_that_does_not_fit_is_refused(pico, tmp_path):
    save_file({"nowhere": torch.ones(1)}, tmp_path / FILE)
    with pytest.raises(UserError, match="1 tensors have no place there.*nowhere"):
        Changed(Stored(folder_of(pico)), tmp_path)
    save_file({"model.norm.weight": torch.ones(3)}, tmp_path / FILE)
    with pytest.raises(UserError, match=r"model.norm.weight is \(3,\) in the delta and \(64,\) in the base"):
        Changed(Stored(folder_of(pico)), tmp_path).read("model.norm.weight")
