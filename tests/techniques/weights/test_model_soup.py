"""model-soup: copies, linear models and adapters by closed form; greedy and learned soups of classifiers that were planted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from luthier.core.artifact import open_artifact
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_json, write_json
from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.engine import pico as pico_models
from luthier.engine.executor import execute
from luthier.engine.models import add_tuned
from luthier.pipelines.merging import merge
from luthier.techniques.weights._souping import learn
from tests.recorded import far, recorded, wave
from tests.techniques.weights._recorded import merged

WORDS = {"dry": ("sand", "dust", "chalk", "straw"), "wet": ("rain", "pond", "moss", "river")}
ROWS = [{"text": f"The plot has {word} and {other}.", "label": label} for label, words in WORDS.items() for word in words
        for other in words if word != other]


def noise(shape: Any, seed: int, size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def runs(engine, tmp_path_factory) -> list[Path]:
    """A classifier that knows its rows, one that was tuned a little further, and one whose head says the contrary, loudly."""
    folder = tmp_path_factory.mktemp("soups")
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    before = torch.get_num_threads()
    for number, steps in enumerate((30, 36)):
        tuned = {"use": "fit", "method": "full", "length": {"steps": steps}, "learning_rate": 3e-3, "dtype": "float32",
                 "tasks": [{"data": "examples.all", "objective": "classify", "head": "linear"}], "over_long": "truncate",
                 "inputs": {"base": "base", "examples": "rows"}}
        execute(Recipe({"name": "soups", "seed": 0, "steps": {
            "base": {"use": "base", "model": "pico-encoder"},
            "rows": {"use": "read", "path": str(folder / "rows.jsonl")}, "tuned": tuned}}), folder / f"run{number}", engine)
    torch.set_num_threads(before)
    shutil.copytree(folder / "run0", folder / "run2")
    heads = folder / "run2" / "steps" / "tuned" / "heads.safetensors"
    save_file({n: -5 * t for n, t in load_file(heads).items()}, heads, metadata={"format": "pt"})
    record = folder / "run2" / "steps" / "tuned" / "luthier.json"
    write_json(record, {**read_json(record), "identity": "against"})
    return [folder / f"run{n}" for n in range(3)]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> tuple[Path, list[Path]]:
    """A base and two LoRA adapters of rank 3 on it."""
    folder = tmp_path_factory.mktemp("adapters")
    pico_models.make("pico", folder / "base")
    made = []
    for number in range(2):
        wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"),
                                 LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj", "embed_tokens"]))
        for k, (name, parameter) in enumerate(wrapped.named_parameters()):
            if "lora_" in name:
                parameter.data = noise(parameter.shape, 100 * number + k, 0.3)
        wrapped.save_pretrained(folder / f"lora{number}")
        made.append(folder / f"lora{number}")
    return folder / "base", made


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[5, 9, 14, 7, 11]])).logits


@pytest.mark.oracle(clause="averages of LoRA factors and of what they do", against="AdapterHub's adapters 1.3.0")
@pytest.mark.parametrize("record", recorded("adapters_hub")["averages"], ids=lambda r: r["rule"])
def test_averages_of_loras_are_adapterhub_s(record):
    """Factors as they are; of the nearest LoRA the product, whose roots it puts on one side."""
    names = {side: f"base_model.model.layers.0.query.lora_{side}.weight" for side in "AB"}
    given = [{names[side]: wave(*shape, shift=10 * m + n) for n, (side, shape) in enumerate((("A", (2, 16)), ("B", (16, 2))))}
             for m in range(2)]
    found = merged(record["rule"], given)
    a, b = (torch.tensor(record[side]).view(shape) for side, shape in (("A", (2, 16)), ("B", (16, 2))))
    assert far(found[names["B"]] @ found[names["A"]], b @ a) <= 2e-6
    if record["strategy"] == "linear":
        assert far(found[names["A"]], a) <= 1e-6 and far(found[names["B"]], b) <= 1e-6


@pytest.mark.oracle(seed=44, clause=1, against="the model itself")
@pytest.mark.parametrize("lora", ["merged", "exact", "svd", "factors"])
def test_a_soup_of_copies_is_the_model(lora, adapters, tmp_path):
    base, (one, _) = adapters
    out, found = merge([str(one)] * 3, f"model-soup:lora={lora}", tmp_path / "out", base=str(base))
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), one)
    made = AutoModelForCausalLM.from_pretrained(out) if lora == "merged" else \
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out)
    assert torch.allclose(logits(made), logits(alone), atol=1e-5) and all(f.verdict == "agrees" for f in found)


@pytest.mark.oracle(seed=44, clause=2, against="the ensemble")
def test_of_linear_models_the_soup_is_the_ensemble():
    models = [{"w": noise((4, 6), seed), "b": noise(4, seed + 10)} for seed in range(3)]
    x = noise((20, 6), 99)
    soup = merged("model-soup", models)
    said = [x @ m["w"].T + m["b"] for m in models]
    assert torch.allclose(x @ soup["w"].T + soup["b"], sum(said) / 3, atol=1e-5)
    # With a bend between two layers it is not: the test can tell.
    bent = [torch.relu(s) @ m["w"] for s, m in zip(said, models, strict=True)]
    assert not torch.allclose(torch.relu(x @ soup["w"].T + soup["b"]) @ soup["w"], sum(bent) / 3, atol=0.1)


@pytest.mark.oracle(seed=44, clause=3, against="brute force")
@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_greedy_is_never_worse_than_the_best_single_model(metric):
    rule = build("weight_rule", "model-soup:kind=greedy,val=x.jsonl")
    if metric == "perplexity":
        object.__setattr__(rule, "metric", type("Low", (), {"higher_is_better": False})())
    way = 1 if metric == "accuracy" else -1
    for seed in range(50):
        values = torch.rand(32, generator=torch.Generator().manual_seed(seed)).mul(8).round().tolist()  # with ties

        def score(members: Any, values: Any = values) -> float:
            return values[sum(1 << i for i in members)]

        single = [score([i]) for i in range(5)]
        members, trail = rule._greedy(SimpleNamespace(log=lambda text: None), single, score)
        assert way * score(members) >= way * (max if way > 0 else min)(single)
        # The same by the definition: all subsets in the order of single scores.
        order, kept = sorted(range(5), key=lambda i: (-way * single[i], i)), []
        for i in order:
            if not kept or way * score([*kept, i]) >= way * score(kept):
                kept.append(i)
        assert members == kept and [t["members"][-1] for t in trail] == order


@pytest.mark.oracle(seed=44, clause=3, against="the code of model-soups' authors")
@pytest.mark.parametrize("record", recorded("soups")["records"], ids=lambda r: f"aim={r['aim']}")
def test_soups_are_those_of_the_authors_code(record):
    """Of models without ties: there it leaves a model out, where the paper and we let it join."""
    models = [wave(6, shift=1.7 * n) for n in range(recorded("soups")["models"])]
    aim = wave(6, shift=record["aim"], scale=0.2).double()

    def score(members: Any) -> float:
        soup = torch.stack([models[n] for n in members]).double().mean(0)
        return float(1 / (1 + (soup - aim).square().sum()))

    rule = build("weight_rule", "model-soup:kind=greedy,val=x.jsonl")
    members, _ = rule._greedy(SimpleNamespace(log=lambda text: None), [score([n]) for n in range(len(models))], score)
    assert members == record["members"]
    for chosen, wanted in ((members, record["greedy"]), (range(len(models)), record["uniform"])):
        found = merged("model-soup", [{"w": models[n]} for n in chosen])["w"]
        assert found.tolist() == pytest.approx(wanted, abs=4e-7)


def held_out(folder: Path, rows: Any = ROWS) -> str:
    (folder / "val.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(folder / "val.jsonl")


def accuracy(out: Path, run: Path, engine: Any, make_ctx: Any) -> float:
    """Of a merged classifier, loaded from its files."""
    from luthier.core.example import Example, Part, Turn
    from luthier.engine.classification import classify

    artifact = open_artifact(out)
    model = add_tuned(engine.fresh(Run.open(run).step("base"), torch.float32), artifact)
    rows = [Example(str(i), (Turn("user", (Part(r["text"], name="text"),)),), label=r["label"]) for i, r in enumerate(ROWS)]
    said = classify(model, artifact, rows, make_ctx("classify"))
    return sum(p.label == r.label for p, r in zip(said, rows, strict=True)) / len(rows)


@pytest.mark.oracle(seed=44, clause=3, against="the models loaded one by one")
def test_a_greedy_soup_of_runs_leaves_out_what_harms(runs, engine, make_ctx, tmp_path):
    told: list[str] = []
    given = [runs[2], runs[0], runs[1]]
    out, _ = merge([str(r) for r in given], f"model-soup:kind=greedy,val={held_out(tmp_path)}", tmp_path / "out",
                   log=told.append)
    soup = read_json(out / "merge.json")["soup"]
    singles = [accuracy(r / "steps" / "tuned", r, engine, make_ctx) for r in given]
    assert soup["single"] == pytest.approx(singles) and soup["shares"][""][0] == 0
    best = max(t["score"] for t in soup["trail"] if t["kept"])
    assert accuracy(out, runs[0], engine, make_ctx) == pytest.approx(best) and best >= max(singles)
    assert [t["kept"] for t in soup["trail"]] == [True, True, False]
    assert any("not the same start (heads included)?" in line for line in told)


@pytest.mark.oracle(seed=44, clause=4, against="a quadratic whose optimum is known")
@pytest.mark.parametrize("per_layer", [False, True])
def test_learned_shares_go_to_the_one_model_that_is_right(per_layer, make_ctx):
    module = torch.nn.ModuleDict({"h": torch.nn.ModuleList([torch.nn.Linear(4, 4, bias=False) for _ in range(2)])})
    module.base_model_prefix = "none"
    module.requires_grad_(False)
    given = [{f"h.{layer}.weight": noise((4, 4), 10 * model + layer) for layer in range(2)} for model in range(3)]
    x = noise((40, 4), 99)
    right = [x @ given[1][f"h.{layer}.weight"].T for layer in range(2)]

    def loss(batch: torch.Tensor) -> torch.Tensor:
        return sum((module["h"][layer](x[batch]) - right[layer][batch]).square().mean() for layer in range(2))

    ctx = make_ctx("learn")
    ctx.stream = lambda name: given[int(name.removeprefix("models/"))].items()
    asked = SimpleNamespace(loss=loss, batches=torch.arange(40).split(10))
    model = SimpleNamespace(module=module, heads={}, device=torch.device("cpu"))
    before = module["h"][0].weight.clone()
    found = learn(model, ctx, 3, asked, per_layer, rate=0.1, epochs=40, decay=0.0)
    units = ["h.0", "h.1"] if per_layer else [""]
    assert all(0.9 < found["shares"][unit][1] < 1 for unit in units) and set(found["shares"]) == {"", *units}
    assert found["losses"][-1] < 0.1 * found["losses"][0] and torch.equal(module["h"][0].weight, before)


def test_the_files_hold_what_was_learned(runs, tmp_path):
    rule = {"use": "model-soup", "kind": "learned", "val": held_out(tmp_path), "epochs": 3, "batch_rows": 8}
    out, _ = merge([str(runs[2]), str(runs[0])], rule, tmp_path / "out")
    soup = read_json(out / "merge.json")["soup"]
    shares = soup["shares"][""]
    assert soup["losses"][-1] < soup["losses"][0] and sum(shares) == pytest.approx(1) and soup["factor"] != 1
    own = [load_file(r / "steps" / "tuned" / "heads.safetensors") for r in (runs[2], runs[0])]
    assert all(torch.allclose(t, shares[0] * own[0][n] + shares[1] * own[1][n], atol=1e-5)
               for n, t in load_file(out / "heads.safetensors").items())


def test_shares_of_language_models_follow_their_loss(adapters, tmp_path):
    base, (one, two) = adapters
    rows = [{"question": "What is glue?", "answer": "hide"}, {"question": "What is spruce?", "answer": "wood"}]
    rule = {"use": "model-soup", "kind": "learned", "val": held_out(tmp_path, rows), "epochs": 8, "metric": "exact-match"}
    out, _ = merge([str(one), str(two)], rule, tmp_path / "out", base=str(base))
    soup = read_json(out / "merge.json")["soup"]
    assert soup["losses"][-1] < soup["losses"][0] and soup["shares"][""][0] != pytest.approx(0.5, abs=1e-3)
    greedy = {**rule, "kind": "greedy", "metric": "f1"}
    found, _ = merge([str(one), str(two)], greedy, tmp_path / "greedy", base=str(base))
    assert len(read_json(found / "merge.json")["soup"]["trail"]) == 2


@pytest.mark.oracle(seed=44, clause=5, against="the average of dense changes")
@pytest.mark.parametrize("rslora", [False, True])
def test_an_exact_soup_of_adapters_is_that_of_dense_changes(rslora, adapters, tmp_path):
    base, given = adapters
    named = []
    for number, place in enumerate(given):
        shutil.copytree(place, tmp_path / f"lora{number}")
        config = {**read_json(place / "adapter_config.json"), "use_rslora": rslora}
        write_json(tmp_path / f"lora{number}" / "adapter_config.json", config)
        named.append(str(tmp_path / f"lora{number}"))
    dense = AutoModelForCausalLM.from_pretrained(base)
    own = dense.state_dict()
    for place in named:
        whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), place).merge_and_unload().state_dict()
        for name in own:
            own[name] += 0.5 * (whole[name] - AutoModelForCausalLM.from_pretrained(base).state_dict()[name])
    out, _ = merge(named, "model-soup:lora=exact", tmp_path / "out", base=str(base))
    soup = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out)
    assert read_json(out / "adapter_config.json")["r"] == 6
    assert torch.allclose(logits(soup), logits(dense), atol=1e-5)
    factors, _ = merge(named, "model-soup:lora=factors", tmp_path / "factors", base=str(base))
    apart = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), factors)
    assert not torch.allclose(logits(apart), logits(dense), atol=0.01)


def test_back_to_its_rank_the_soup_is_the_nearest_there_is(adapters, tmp_path):
    base, given = adapters
    out, _ = merge([str(g) for g in given], "model-soup:lora=svd", tmp_path / "out", base=str(base))
    exact, _ = merge([str(g) for g in given], "model-soup:lora=exact", tmp_path / "exact", base=str(base))
    near, whole = (load_file(p / "adapter_model.safetensors") for p in (out, exact))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    product = whole[name.format("B")] @ whole[name.format("A")]
    left = torch.linalg.svdvals(product)[3:].square().sum().sqrt()  # Eckart and Young
    assert near[name.format("A")].shape[0] == 3
    assert float((near[name.format("B")] @ near[name.format("A")] - product).norm()) == pytest.approx(float(left), rel=1e-3)


def test_one_model_is_copied_and_that_is_said(runs, tmp_path):
    told: list[str] = []
    out, _ = merge([str(runs[0])], "model-soup", tmp_path / "out", log=told.append)
    own = load_file(runs[0] / "steps" / "tuned" / "model.safetensors")
    assert all(torch.equal(t, own[n]) for n, t in load_file(out / "model.safetensors").items())
    assert any("one model, so the soup is that model" in line for line in told)


def test_different_bases_are_refused_unless_forced(tmp_path):
    for seed in (1, 2):
        folder = tmp_path / f"base{seed}"
        pico_models.make("pico", folder)
        own = load_file(folder / "model.safetensors")
        save_file({n: t + noise(t.shape, seed, 0.01) for n, t in own.items()}, folder / "model.safetensors",
                  metadata={"format": "pt"})
        wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, target_modules=["q_proj"]))
        wrapped.peft_config["default"].base_model_name_or_path = str(folder)
        wrapped.save_pretrained(tmp_path / f"lora{seed}")
    given = [str(tmp_path / f"lora{seed}") for seed in (1, 2)]
    with pytest.raises(UserError, match="Weights of different bases do not add up"):
        merge(given, "model-soup", tmp_path / "out")
    out, _ = merge(given, "model-soup:force=true", tmp_path / "out")
    one, two = (load_file(tmp_path / f"base{seed}" / "model.safetensors") for seed in (1, 2))
    assert torch.allclose(load_file(out / "model.safetensors")["model.norm.weight"],
                          (one["model.norm.weight"] + two["model.norm.weight"]) / 2)


def test_other_tensors_are_named_first_five(tmp_path):
    for name in ("a", "b"):
        pico_models.make("pico", tmp_path / name)
    path = tmp_path / "b" / "model.safetensors"
    own = load_file(path)
    gone = sorted(own)[:6]
    save_file({n: t for n, t in own.items() if n not in gone}, path, metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        merge([str(tmp_path / "a"), str(tmp_path / "b")], "model-soup", tmp_path / "out")
    assert f"6 tensors are in {tmp_path / 'a'} alone ({', '.join(gone[:5])})" in str(caught.value)


@pytest.mark.parametrize(("spec", "said"), [
    ("model-soup:kind=greedy", "chosen on held-out rows: val=FILE"),
    ("model-soup:val=nowhere.jsonl", "there is no such file"),
    ("model-soup:per_layer=true", "per_layer is for kind=learned alone"),
    ("model-soup:kind=greedy,val=x.jsonl,metric=similarity", "asks further models"),
])
def test_what_can_not_be_chosen_is_refused_before_weights_are_read(spec, said):
    with pytest.raises(UserError, match=said):
        build("weight_rule", spec).check(2)


def test_rows_and_adapters_of_another_form_are_refused(adapters, tmp_path):
    (tmp_path / "mixed.jsonl").write_text('{"text": "a", "label": "b"}\n{"question": "c", "answer": "d"}\n')
    with pytest.raises(UserError, match="rows with labels and rows with answers"):
        build("weight_rule", f"model-soup:val={tmp_path / 'mixed.jsonl'}").check(2)
    base, given = adapters
    with pytest.raises(UserError, match="has labels, and these models have no head"):
        merge([str(g) for g in given], f"model-soup:kind=greedy,val={held_out(tmp_path)}", tmp_path / "out", base=str(base))
    dora = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]))
    dora.save_pretrained(tmp_path / "dora")
    with pytest.raises(UserError, match=r"joins plain LoRA; this adapter holds .*magnitude"):
        merge([str(tmp_path / "dora")] * 2, "model-soup:lora=exact", tmp_path / "out", base=str(base))
