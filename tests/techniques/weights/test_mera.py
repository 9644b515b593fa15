"""mera: permuted copies are found again, solvers agree with brute force, adapters of runs merge to one."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.engine import pico as pico_models
from luthier.pipelines.merging import merge
from luthier.techniques.weights.mera import transport

SITE = "base_model.model.layers.0.bottleneck_layers"
Tensors = dict[str, torch.Tensor]


def adapter(seed: int, size: int = 6, width: int = 10) -> Tensors:
    rng = torch.Generator().manual_seed(seed)
    return {f"{SITE}.down.weight": torch.randn(size, width, generator=rng),
            f"{SITE}.down.bias": torch.randn(size, generator=rng),
            f"{SITE}.up.weight": torch.randn(width, size, generator=rng), f"{SITE}.up.bias": torch.randn(width, generator=rng)}


def permuted(own: Tensors, order: list[int]) -> Tensors:
    return {n: t[:, order] if n.endswith("up.weight") else t if n.endswith("up.bias") else t[order] for n, t in own.items()}


def f(own: Tensors, x: torch.Tensor) -> torch.Tensor:
    inner = torch.nn.functional.gelu(x @ own[f"{SITE}.down.weight"].T + own[f"{SITE}.down.bias"])
    return inner @ own[f"{SITE}.up.weight"].T + own[f"{SITE}.up.bias"]


def merged(spec: str, given: list[Tensors], stats: Any = ()) -> Tensors:
    rule = build("weight_rule", spec)
    (group,) = rule.groups(list(given[0]))
    return rule.apply(group, given, stats)


@pytest.mark.oracle(seed=177, clause=1, against="the adapter itself")
@pytest.mark.parametrize("spec", ["mera", "mera:cost=activations", "mera:solver=sinkhorn,entropy=0.001", "mera:anchor=1"])
def test_a_permuted_copy_is_found_again(spec):
    own, x = adapter(1), torch.randn(20, 10)
    given = [own, permuted(own, [3, 0, 5, 1, 4, 2]), permuted(own, [1, 2, 0, 5, 3, 4])]
    said = [{f"{SITE}.down.weight": g[f"{SITE}.down.weight"] @ x.T} for g in given]
    assert torch.allclose(f(merged(spec, given, said), x), f(own, x), atol=1e-5)
    assert not torch.allclose(f(merged("mera:align=none", given), x), f(own, x), atol=0.1)


@pytest.mark.oracle(seed=177, clause=2, against="the adapter itself")
def test_one_adapter_stays_as_it_is():
    own = adapter(2)
    assert all(torch.equal(t, own[n]) for n, t in merged("mera", [own]).items())


@pytest.mark.oracle(seed=177, clause=3, against="brute force")
@pytest.mark.parametrize("size", [2, 4, 6])
def test_the_assignment_is_the_cheapest(size):
    cost = torch.rand(size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    best = min(float(sum(cost[i, j] for i, j in enumerate(p))) for p in permutations(range(size)))
    plan = transport(cost, "hungarian", 1.0)
    assert float((plan * cost).sum()) == pytest.approx(best, rel=1e-12)
    assert plan.sum(0).tolist() == plan.sum(1).tolist() == [1.0] * size


@pytest.mark.oracle(seed=177, clause=4, against="the assignment")
def test_sinkhorn_becomes_the_assignment():
    one, two = (torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1))
    cost = torch.cdist(one, two).square()
    exact = transport(cost, "hungarian", 1.0)
    far = [float((transport(cost, "sinkhorn", e) - exact).abs().max()) for e in (1.0, 0.1, 0.01)]
    assert far[0] > far[1] > far[2] and far[2] < 1e-3
    spread = transport(cost, "sinkhorn", 0.5)
    assert torch.allclose(spread.sum(0), torch.ones(5, dtype=torch.float64)) and torch.allclose(
        spread.sum(1), torch.ones(5, dtype=torch.float64), atol=1e-6)


def test_the_mean_and_the_sum_by_hand():
    one, two = adapter(3), adapter(4)
    mean, total = (merged(f"mera:align=none,how={how}", [one, two]) for how in ("average", "sum"))
    assert all(torch.allclose(mean[n], (one[n] + two[n]) / 2) and torch.allclose(total[n], one[n] + two[n]) for n in one)


def test_adapters_on_disk_become_one_that_peft_loads(tmp_path):
    pico_models.make("pico", tmp_path / "a")
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "a"), LoraConfig(r=4, target_modules=["q_proj"]))
    rng = torch.Generator().manual_seed(0)
    weights = {n: p for n, p in wrapped.named_parameters() if "lora_" in n}
    for parameter in weights.values():
        parameter.data = torch.randn(parameter.shape, generator=rng)
    wrapped.save_pretrained(tmp_path / "one")
    for name, parameter in weights.items():
        parameter.data = parameter.data[:, [2, 0, 3, 1]] if "lora_B" in name else parameter.data[[2, 0, 3, 1]]
    wrapped.save_pretrained(tmp_path / "two")
    (tmp_path / "texts.txt").write_text("Hide glue is warmed.\nSpruce carries sound.\n")
    for name, spec in (("w", "mera"), ("x", f"mera:cost=activations,texts={tmp_path / 'texts.txt'}")):
        out, found = merge([str(tmp_path / "one"), str(tmp_path / "two")], spec, tmp_path / name, base=str(tmp_path / "a"))
        first = load_file(tmp_path / "one" / "adapter_model.safetensors")
        assert all(torch.allclose(t, first[n], atol=1e-6) for n, t in load_file(out / "adapter_model.safetensors").items())
        assert (out / "adapter_config.json").exists() and all(f.verdict == "agrees" for f in found)


def test_what_can_not_be_merged_is_refused(tmp_path):
    for spec, said in (("mera:anchor=2", "counted from 0"), ("mera:cost=activations", "needs a file of texts"),
                       ("mera:texts=x.txt", "reads no texts")):
        with pytest.raises(UserError, match=said):
            build("weight_rule", spec).check(2)
    pico_models.make("pico", tmp_path / "a")

    def saved(name: str, config: Any) -> str:
        get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "a"), config).save_pretrained(tmp_path / name)
        return str(Path(tmp_path / name))

    base, one = str(tmp_path / "a"), saved("one", LoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(UserError, match=r"not of one form: .*r is 4 in .* and 2 in"):
        merge([one, saved("two", LoraConfig(r=2, target_modules=["q_proj"]))], "mera", tmp_path / "out", base=base)
    with pytest.raises(UserError, match="at least 2 models; found 1"):
        merge([one], "mera", tmp_path / "out", base=base)
    other = [saved(n, LoHaConfig(r=2, target_modules=["q_proj"])) for n in ("three", "four")]
    with pytest.raises(UserError, match="bottleneck adapters and LoRA; this adapter has neither"):
        merge(other, "mera", tmp_path / "out", base=base)
