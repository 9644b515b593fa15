"""merging: what comes out loads elsewhere and is what the rule says; what does not fit is refused before the work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import luthier
from luthier.core.artifact import open_artifact
from luthier.core.component import find
from luthier.core.errors import GateError, UserError
from luthier.core.files import read_json, write_json
from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.engine import pico as pico_models
from luthier.engine.executor import execute
from luthier.engine.models import add_tuned
from luthier.pipelines.merging import merge

ROWS = [{"question": f"Which {word} grows on plot {i}?", "answer": f"{word} {i}"} for i, word in enumerate(
    "amber birch cedar delta ember fjord grove heron inlet jetty knoll larch".split())]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base `a` and two models `b`, `c` tuned from it, as folders."""
    folder = tmp_path_factory.mktemp("merging")
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        pico_models.make("pico", folder / name)
        if seed:
            change(folder / name, seed)
    return folder


def change(model: Path, seed: int) -> None:
    """Move every weight a little."""
    rng = torch.Generator().manual_seed(seed)
    tensors = load_file(model / "model.safetensors")
    moved = {n: t + 0.02 * torch.randn(t.shape, generator=rng) for n, t in tensors.items()}
    save_file(moved, model / "model.safetensors", metadata={"format": "pt"})


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for path in sorted(folder.glob("*.safetensors")) for n, t in load_file(path).items()}


def test_two_models_become_one_that_transformers_loads(place, tmp_path):
    out, found = merge([str(place / "b"), str(place / "c")], "linear:weights=[1,3]", tmp_path / "out", shard_mb=0)
    assert [f.verdict for f in found] == ["agrees"] * 3 and not list(tmp_path.glob(".*"))
    one, two, made = tensors_of(place / "b"), tensors_of(place / "c"), tensors_of(out)
    assert made.keys() == one.keys() and all(torch.allclose(made[n], (one[n] + 3 * two[n]) / 4, atol=1e-6) for n in made)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, ids = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)("What is glue?")["input_ids"]
    assert torch.equal(model.state_dict()["lm_head.weight"], made["lm_head.weight"])
    assert model(torch.tensor([ids])).logits.isfinite().all()
    assert open_artifact(out).kind == "model" and (out / "licenses" / "PICO.txt").exists()
    record = read_json(out / "merge.json")
    assert record["rule"]["weights"] == [1.0, 3.0]
    assert [m["name"] for m in record["models"]] == [str(place / "b"), str(place / "c")]


def test_the_same_command_again_does_nothing_and_another_is_refused(place, tmp_path):
    given = [str(place / "b"), str(place / "c")]
    out, found = merge(given, "linear", tmp_path / "out")
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert merge(given, "linear", tmp_path / "out") == (out, found)
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="not empty"):
        merge(given, "slerp", tmp_path / "out")


def test_rules_that_take_a_base_get_it_first(place, tmp_path):
    base, one, two = (tensors_of(place / n) for n in "abc")
    out, _ = merge([str(place / "b"), str(place / "c")], "task-arithmetic:scale=0.5", tmp_path / "sum", base=str(place / "a"))
    made = tensors_of(out)
    assert all(torch.allclose(made[n], base[n] + 0.5 * (one[n] - base[n] + two[n] - base[n]), atol=1e-6) for n in made)
    out, _ = merge([str(place / "b")], "rescale-intruders:factor=0.5,eps=0.9", tmp_path / "scaled", base=str(place / "a"))
    made = tensors_of(out)
    assert torch.equal(made["model.norm.weight"], one["model.norm.weight"])
    assert any(not torch.equal(made[n], one[n]) for n in made)
    out, _ = merge([str(place / "b"), str(place / "c")], "model-stock", tmp_path / "stock", base=str(place / "a"))
    facts = read_json(out / "merge.json")["facts"]
    assert facts.keys() == base.keys() and all(0 <= f["t"] <= 1 and 0 < f["degrees"] <= 180 for f in facts.values())


@pytest.fixture(scope="module")
def runs(engine, tmp_path_factory) -> list[Path]:
    """Runs of pico: two adapters and full weights."""
    folder, made = tmp_path_factory.mktemp("runs"), []
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    before = torch.get_num_threads()
    for seed, method in enumerate(("lora", "lora:dora=true,target=attention-qv", "full")):
        steps: dict[str, Any] = {
            "base": {"use": "base", "model": "pico"}, "rows": {"use": "read", "path": str(folder / "rows.jsonl")},
            "split": {"use": "split", "inputs": {"questions": "rows"}},
            "tuned": {"use": "fit", "method": method, "length": {"steps": 2}, "learning_rate": 0.01,
                      "inputs": {"base": "base", "examples": "split"}}}
        execute(Recipe({"name": "merging", "seed": seed, "steps": steps}), folder / f"run{seed}", engine)
        made.append(folder / f"run{seed}")
    torch.set_num_threads(before)
    return made


def dense(run: Path, engine: Any) -> dict[str, torch.Tensor]:
    """The weights of a run's tuned model, merged in memory."""
    opened = Run.open(run)
    module = add_tuned(engine.fresh(opened.step("base"), torch.float32), opened.step("tuned")).module
    return (module.merge_and_unload() if hasattr(module, "merge_and_unload") else module).state_dict()


def test_runs_of_any_form_are_merged(runs, engine, tmp_path):
    out, found = merge([str(r) for r in runs], "linear", tmp_path / "out")
    made, truth = tensors_of(out), [dense(r, engine) for r in runs]
    assert all(f.verdict == "agrees" for f in found)
    assert all(torch.allclose(made[n], sum(t[n] for t in truth) / 3, atol=1e-6) for n in made)
    meta = open_artifact(out).meta
    assert meta["base"]["name"] == "pico" and meta["template"]["stop_ids"]


@pytest.mark.oracle(seed=29, clause=8, against="the same tunes as full models")
def test_adapters_are_merged_as_what_they_make_of_the_base(runs, engine, place, tmp_path):
    for number, run in enumerate(runs[:2]):
        shutil.copytree(place / "a", tmp_path / f"dense{number}")
        save_file({n: t.contiguous() for n, t in dense(run, engine).items()}, tmp_path / f"dense{number}" / "model.safetensors",
                  metadata={"format": "pt"})
    one, _ = merge([str(r) for r in runs[:2]], "model-stock", tmp_path / "one")
    two, _ = merge([str(tmp_path / f"dense{n}") for n in range(2)], "model-stock", tmp_path / "two", base="pico")
    assert all(torch.allclose(t, tensors_of(two)[n], atol=1e-5) for n, t in tensors_of(one).items())


def test_a_bare_adapter_rests_on_the_named_base(place, tmp_path):
    from transformers import AutoModelForCausalLM

    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(place / "b"), LoraConfig(r=2, target_modules=["q_proj"]))
    for n, p in wrapped.named_parameters():
        if "lora_B" in n:
            torch.nn.init.ones_(p)
    wrapped.save_pretrained(tmp_path / "adapter")
    out, _ = merge([str(tmp_path / "adapter")], "linear", tmp_path / "out", base=str(place / "b"))
    truth = wrapped.merge_and_unload().state_dict()
    assert all(torch.allclose(t, truth[n], atol=1e-6) for n, t in tensors_of(out).items())


def edited(place: Path, target: Path, file: str, **values: Any) -> Path:
    """A copy of model `c` with other values in one of its JSON files."""
    shutil.copytree(place / "c", target)
    write_json(target / file, {**read_json(target / file), **values})
    return target


def other_vocabulary(place: Path, target: Path) -> Path:
    shutil.copytree(place / "c", target)
    tokenizer = read_json(target / "tokenizer.json")
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    tokenizer["model"]["vocab"] |= {words[-1]: len(words) - 2, words[-2]: len(words) - 1}
    write_json(target / "tokenizer.json", tokenizer)
    return target


def other_shape(place: Path, target: Path) -> Path:
    shutil.copytree(place / "c", target)
    tensors = load_file(target / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, target / "model.safetensors")
    return target


@pytest.mark.parametrize(("make", "said"), [
    (lambda p, t: edited(p, t, "config.json", model_type="mistral"), "their model_type are llama and mistral"),
    (lambda p, t: edited(p, t, "config.json", architectures=["LlamaModelForCausalLM"]), "their architectures are"),
    (other_vocabulary, "their vocabularies have .* tokens and differ first at"),
    (lambda p, t: edited(p, t, "tokenizer_config.json", eos_token="<mask>"), "begin, end and padding tokens"),
    (other_shape, r"model\.norm\.weight is \[64\] in .* and \[3\] in"),
])
def test_models_that_do_not_fit_one_another_are_refused(make, said, place, tmp_path):
    other = make(place, tmp_path / "other")
    with pytest.raises(UserError, match=said):
        merge([str(place / "b"), str(other)], "linear", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_chat_templates_must_agree(place, tmp_path):
    first = edited(place, tmp_path / "first", "tokenizer_config.json", chat_template="{{ messages }}")
    other = edited(place, tmp_path / "other", "tokenizer_config.json", chat_template="<bos>{{ messages }}")
    with pytest.raises(UserError, match="chat templates differ"):
        merge([str(first), str(other)], "linear", tmp_path / "out")


def test_lineage_must_agree(runs, place, tmp_path):
    with pytest.raises(UserError, match=r"was tuned from pico \(.*but --base is .*/b"):
        merge([str(runs[0])], "linear", tmp_path / "out", base=str(place / "b"))
    with pytest.raises(UserError, match="needs the model that the others were tuned from"):
        merge([str(place / "b"), str(place / "c")], "ties", tmp_path / "out")
    with pytest.raises(UserError, match="reads no base"):
        merge([str(place / "b"), str(place / "c")], "linear", tmp_path / "out", base=str(place / "a"))


@pytest.mark.parametrize(("models", "rule", "said"), [
    (["b"], "slerp", "takes 2 models; found 1"), (["b"], "model-stock", "at least 2 models beside the base; found 1"),
    (["b", "nowhere"], "linear", "There is no base"), (["b", "c"], "linnear", "Did you mean 'linear'"),
])
def test_what_can_not_be_merged_is_refused(models, rule, said, place, tmp_path):
    with pytest.raises(UserError, match=said):
        merge([str(place / m) for m in models], rule, tmp_path / "out")


def test_a_head_of_labels_is_not_dropped_in_silence(runs, classifiers, tmp_path, monkeypatch):
    shutil.copytree(runs[0], tmp_path / "run")
    record = tmp_path / "run" / "steps" / "tuned" / "luthier.json"
    write_json(record, {**read_json(record), "heads": {"topic": {"use": "linear"}}})
    with pytest.raises(UserError, match=r"has a head of its own \(topic\), which --rule task-arithmetic does not merge.*share"):
        merge([str(tmp_path / "run"), str(runs[0])], "task-arithmetic", tmp_path / "out")
    with pytest.raises(UserError, match="Only a head that all models share is kept"):
        merge([str(c) for c in classifiers], "task-arithmetic", tmp_path / "out")
    told: list[str] = []
    kept, _ = merge([str(classifiers[0])], "task-arithmetic", tmp_path / "kept", log=told.append)
    own = Run.open(classifiers[0]).step("tuned").folder / "heads.safetensors"
    assert (kept / "heads.safetensors").read_bytes() == own.read_bytes() and open_artifact(kept).meta["heads"] and not told
    monkeypatch.setattr(find("weight_rule", "task-arithmetic"), "heads", "dropped")
    left, _ = merge([str(classifiers[0])], "task-arithmetic", tmp_path / "left", log=told.append)
    assert told == ["--rule task-arithmetic leaves the heads of its models out"]
    assert not (left / "heads.safetensors").exists() and not open_artifact(left).meta["heads"]


@pytest.fixture(scope="module")
def classifiers(engine, tmp_path_factory) -> list[Path]:
    """Two runs of a classifier with a head of its own."""
    folder, made = tmp_path_factory.mktemp("classifiers"), []
    rows = [{"text": f"The {word} on plot {i} is {kind}.", "label": kind} for i, word in enumerate("amber birch cedar".split())
            for kind in ("dry", "wet")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    before = torch.get_num_threads()
    for seed in range(2):
        steps: dict[str, Any] = {
            "base": {"use": "base", "model": "pico-encoder"}, "rows": {"use": "read", "path": str(folder / "rows.jsonl")},
            "tuned": {"use": "fit", "method": "full", "length": {"steps": 2}, "learning_rate": 0.01, "dtype": "float32",
                      "tasks": [{"data": "examples.all", "objective": "classify", "head": "linear"}],
                      "over_long": "truncate", "inputs": {"base": "base", "examples": "rows"}}}
        execute(Recipe({"name": "classifiers", "seed": seed, "steps": steps}), folder / f"run{seed}", engine)
        made.append(folder / f"run{seed}")
    torch.set_num_threads(before)
    return made


def test_heads_are_merged_with_their_models_and_answer(classifiers, engine, tmp_path):
    out, found = merge([str(r) for r in classifiers], "linear:weights=[1,3]", tmp_path / "out")
    assert {"merge/heads/tensors", "merge/loads"} <= {f.name for f in found} and all(f.verdict == "agrees" for f in found)
    opened = [Run.open(r) for r in classifiers]
    one, two = (load_file(r.step("tuned").folder / "heads.safetensors") for r in opened)
    made = load_file(out / "heads.safetensors")
    assert made.keys() == one.keys() and all(torch.allclose(t, (one[n] + 3 * two[n]) / 4, atol=1e-6) for n, t in made.items())
    model = add_tuned(engine.fresh(opened[0].step("base"), torch.float32), open_artifact(out))
    assert list(model.labels.values()) == [["dry", "wet"]] and model.heads
    again, _ = merge([str(out), str(classifiers[0])], "linear", tmp_path / "again")
    assert (again / "heads.safetensors").exists()
    other = tmp_path / "other"
    shutil.copytree(classifiers[1], other)
    record = other / "steps" / "tuned" / "luthier.json"
    write_json(record, {**read_json(record), "labels": {"examples.all": ["dry", "warm"]}})
    with pytest.raises(UserError, match="do not have the same heads: .*wet.*warm"):
        merge([str(classifiers[0]), str(other)], "linear", tmp_path / "refused")


def test_a_wrong_result_appears_nowhere(place, tmp_path, monkeypatch):
    from luthier.core.finding import receipt
    from luthier.engine import models

    monkeypatch.setattr(models, "keys_of", lambda folder: receipt("merge/loads", 0, 2, unit="tensors", detail="lost"))
    with pytest.raises(GateError, match="merge/loads: 0 and 2 tensors"):
        merge([str(place / "b"), str(place / "c")], "linear", tmp_path / "out")
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.merge").exists()


KILLED = """
import os, signal, sys
from luthier.engine.weight_executor import WeightExecutor
from luthier.pipelines.merging import merge
whole, count = WeightExecutor._write, 0
def write(self, name, *rest):
    global count
    count += 1
    if count == 4:
        (self.folder / f"{name}.part").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, name, *rest)
WeightExecutor._write = write
merge(sys.argv[2:], "dare:density=[0.5]", __import__("pathlib").Path(sys.argv[1]), base="pico", shard_mb=0)
"""


def test_a_killed_merge_goes_on_and_gives_the_same(place, tmp_path):
    given = [str(place / "b"), str(place / "c")]
    paths = os.pathsep.join([str(Path(luthier.__file__).parents[1]), *(p for p in sys.path if p)])
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out"), *given], capture_output=True,
                          env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    work = tmp_path / ".out.merge"
    kept = {p.name: p.stat().st_mtime_ns for p in work.glob("model-*.safetensors")}
    assert len(kept) == 3 and len(list(work.glob("*.part"))) == 1
    out, _ = merge(given, "dare:density=[0.5]", tmp_path / "out", base="pico", shard_mb=0)
    assert all((out / name).stat().st_mtime_ns == at for name, at in kept.items()) and not list(out.glob("*.part"))
    whole, _ = merge(given, "dare:density=[0.5]", tmp_path / "whole", base="pico", shard_mb=0)
    assert all(torch.equal(t, tensors_of(whole)[n]) for n, t in tensors_of(out).items())
    assert open_artifact(out).identity == open_artifact(whole).identity
