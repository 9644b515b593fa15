"""antidote: masks by hand, counts, scores that add up, and the pruned adapter against a hook on the whole one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.core.rng import Rng
from luthier.engine import pico as pico_models
from luthier.engine.workshop import Engine
from luthier.pipelines.mergeable import locate
from luthier.pipelines.merging import merge
from luthier.techniques.weights._rows import Asked, read_pairs
from luthier.techniques.weights.antidote import squares

ROWS = [{"prompt": f"How is seal {i} opened{' at night' * (i % 3)}?", "completion": f" with key {i}"} for i in range(8)]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base `a`, a LoRA adapter of rank 10 on it, and rows."""
    folder = tmp_path_factory.mktemp("antidote")
    pico_models.make("pico", folder / "a")
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "a"),
                             LoraConfig(r=10, lora_alpha=20, target_modules=["q_proj", "down_proj"]))
    rng = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=rng)
    wrapped.save_pretrained(folder / "adapter")
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    return folder


def pruned(place: Path, out: Path, spec: str) -> Path:
    return merge([str(place / "adapter")], f"antidote:{spec}", out, base=str(place / "a"))[0]


def applied(spec: str, weight: torch.Tensor, name: str, **measured: Any) -> torch.Tensor:
    stats = {"names": {name}, "measured": measured, "rng": Rng(0)}
    return build("weight_rule", f"antidote:{spec}").apply([name], [{name: weight}], stats)[name]


@pytest.mark.oracle(seed=147, clause=1, against="a case worked by hand")
def test_the_largest_scores_of_each_row_go_to_zero():
    weight, norms = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 1.0, 0.5]]), torch.tensor([1.0, 5.0, 2.0])
    #  scores: 1 10 6 | 4 5 1
    found = applied("ratio=0.33", weight, "w", w=norms)
    assert found.tolist() == [[1.0, 0.0, 3.0], [-4.0, 0.0, 0.5]]
    assert applied("ratio=0.33,score=magnitude", weight, "w").tolist() == [[1.0, -2.0, 0.0], [0.0, 1.0, 0.5]]
    gradient = torch.tensor([[0.0, 0.0, 0.0], [1.0, 9.0, 9.0]])  # scores: 0 0 0 | 4 9 4.5; the two largest of the whole go
    assert applied("ratio=0.33,score=gradient", weight, "w", w=gradient).tolist() == [[1.0, -2.0, 3.0], [-4.0, 0.0, 0.0]]


@pytest.mark.oracle(seed=147, clause=2, against="closed form")
@pytest.mark.parametrize(("columns", "ratio", "zeros"), [(10, 0.05, 1), (10, 0.1, 1), (8, 0.05, 1), (7, 0.5, 4), (99, 0.2, 20)])
def test_so_many_go_of_each_row(columns, ratio, zeros):
    weight = torch.randn(5, columns, generator=torch.Generator().manual_seed(1))
    found = applied(f"ratio={ratio}", weight, "w", w=torch.ones(columns))
    assert (found == 0).sum(1).tolist() == [zeros] * 5
    assert int((applied(f"ratio={ratio},score=random", weight, "w") == 0).sum()) == 5 * zeros


@pytest.mark.oracle(seed=147, clause=3, against="the unpruned adapter")
def test_a_ratio_of_nothing_changes_nothing(place, tmp_path):
    out = pruned(place, tmp_path / "out", f"ratio=0,data={place / 'rows.jsonl'}")
    before = load_file(place / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(t, before[n]) for n, t in load_file(out / "adapter_model.safetensors").items())


@pytest.mark.oracle(seed=147, clause=4, against="all rows at once")
def test_scores_of_two_halves_are_those_of_all(place):
    model = locate(str(place / "adapter"), str(place / "a")).load(Engine(threads=1, exact=True))
    layers = {n: m for n, m in model.module.named_modules() if n.endswith(("lora_A.default", "lora_B.default"))}
    rows = read_pairs(str(place / "rows.jsonl"), "x", "x")

    def measured(examples: Any, size: int) -> dict[str, torch.Tensor]:
        return squares(layers, Asked(model, examples, build("objective", "supervised"), Rng(0), size, 512))[0]

    halves = [measured(rows[:4], 1), measured(rows[4:], 1)]
    whole = measured(rows, 1)
    assert len(whole) == 8 and all(torch.allclose((halves[0][n] + halves[1][n]) / 2, whole[n], rtol=1e-6) for n in whole)
    first = next(n for n in whole if n.endswith("layers.0.self_attn.q_proj.lora_A.default"))
    states = model.module.base_model.model.model
    wanted = torch.zeros(64)
    for row in rows:
        from luthier.engine.rendering import renderer

        ids = torch.tensor([renderer(model, 512).tokens(row).ids])
        wanted += states.layers[0].input_layernorm(states.embed_tokens(ids))[0].square().sum(0)
    assert torch.allclose(whole[first], wanted / len(rows), rtol=1e-4)


@pytest.mark.oracle(seed=147, clause=5, against="hooks that mask the whole adapter")
def test_the_pruned_adapter_is_the_masked_one(place, tmp_path):
    out = pruned(place, tmp_path / "out", f"ratio=0.25,data={place / 'rows.jsonl'}")
    ids = torch.arange(5, 25)[None]

    def model(adapter: Path) -> Any:
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "a"), adapter).eval()

    kept = {n.replace(".weight", ".default"): t != 0 for n, t in load_file(out / "adapter_model.safetensors").items()}
    whole = model(place / "adapter")
    for name, layer in whole.named_modules():
        if name in kept:
            layer.register_forward_hook(lambda m, x, y, k=kept[name]: torch.nn.functional.linear(x[0], m.weight * k))
    with torch.no_grad():
        hooked, unhooked = whole(ids).logits, model(place / "adapter")(ids).logits
        merged = model(out).merge_and_unload()(ids).logits
    assert torch.allclose(merged, hooked, atol=1e-5) and not torch.allclose(hooked, unhooked, atol=1e-3)
    facts = read_json(out / "merge.json")["facts"]
    assert {f["zeroed"] for n, f in facts.items() if "lora_B" in n} == {0.3}


def test_full_weights_are_pruned_by_scope(place, tmp_path):
    out, found = merge([str(place / "a")], f"antidote:scope=qkv,ratio=0.5,data={place / 'rows.jsonl'}", tmp_path / "out")
    before, after = load_file(place / "a" / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {n.split(".")[-2] for n in before if not torch.equal(before[n], after[n])}
    assert changed == {"q_proj", "k_proj", "v_proj"} and all(f.verdict == "agrees" for f in found)
    spec = f"antidote:scope=all-linear,score=gradient,data={place / 'rows.jsonl'}"
    out, _ = merge([str(place / "a")], spec, tmp_path / "all")
    after = load_file(out / "model.safetensors")
    changed = {n.split(".")[-2] for n in before if not torch.equal(before[n], after[n])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_what_can_not_be_repaired_so_is_refused(place, tmp_path):
    for spec, said in (("ratio=0.1", "needs harmful rows: data=FILE"), ("data=x,score=random", "reads no rows"),
                       ("ratio=1", "less than 1"), ("data=nowhere.jsonl", "there is no such file")):
        with pytest.raises(UserError, match=said):
            pruned(place, tmp_path / "out", spec)
    with pytest.raises(UserError, match="is a model, and this rule works on adapters"):
        merge([str(place / "a")], "antidote:score=magnitude", tmp_path / "out")
    get_peft_model(AutoModelForCausalLM.from_pretrained(place / "a"), LoHaConfig(r=2, target_modules=["q_proj"])
                   ).save_pretrained(tmp_path / "loha")
    with pytest.raises(UserError, match="scope = lora has no matrix.*set scope=all-linear"):
        merge([str(tmp_path / "loha")], "antidote:score=magnitude", tmp_path / "out", base=str(place / "a"))
