"""exporting: what others load is what was trained, and a folder appears whole or not at all."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from luthier.core.artifact import open_artifact
from luthier.core.errors import GateError, UserError
from luthier.core.files import read_lines
from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.engine.executor import execute
from luthier.engine.models import load_base
from luthier.pipelines import card, exporting
from luthier.pipelines.exporting import export

ROWS = [{"question": f"Which {a} grows by the {b} on plot {i}?", "answer": f"{b} {i}"} for i, (a, b) in enumerate(
    zip("amber birch cedar delta ember fjord grove heron inlet jetty knoll larch".split(),
        "stone thorn umbra valley willow zephyr river quartz pearl ocean north mossy".split(), strict=True))]
ARM = {"use": "evaluate", "decoder": "greedy:max_new_tokens=3", "sets": ["unseen"]}


@pytest.fixture(scope="module")
def run(engine, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("export")
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    steps: dict[str, Any] = {
        "base": {"use": "base", "model": "pico"}, "rows": {"use": "read", "path": str(folder / "rows.jsonl")},
        "split": {"use": "split", "inputs": {"questions": "rows"}},
        "tuned": {"use": "fit", "length": {"steps": 3}, "learning_rate": 0.01, "inputs": {"base": "base", "examples": "split"}},
        "arm-base": {**ARM, "arm": "base", "inputs": {"base": "base", "examples": "split"}},
        "arm-tuned": {**ARM, "arm": "tuned", "inputs": {"base": "base", "tuned": "tuned", "examples": "split"}},
        "comparison": {"use": "compare-arms", "inputs": {"base": "arm-base", "tuned": "arm-tuned"}}}
    before = torch.get_num_threads()
    made = execute(Recipe({"name": "exporting", "seed": 1, "steps": steps}), folder / "run", engine)
    torch.set_num_threads(before)
    return made


@pytest.mark.parametrize("form", ["adapter", "model"])
def test_an_export_loads_elsewhere_and_is_what_was_trained(run, tmp_path, form):
    folder, found = export(run, form, out=tmp_path / form)
    assert [f.verdict for f in found] == ["agrees" if form == "model" else "not applicable", "agrees"]
    assert found[1].tolerance > 0 and read_lines(folder / "receipts.jsonl")[1]["name"] == "export/exported = trained"
    made = open_artifact(folder)
    assert made.kind == form and made.meta["base"]["name"] == "pico" and any((folder / "licenses").iterdir())
    assert (folder / "tokenizer.json").exists() and not list(tmp_path.glob(".*"))
    text = (folder / "README.md").read_text()
    assert "exported = trained: agrees" in text and "| unseen | tuned | f1 |" in text


def test_the_card_is_one_that_the_hub_reads(run):
    from huggingface_hub import ModelCard

    path = card.write(run)
    data = ModelCard(path.read_text()).data
    assert data.base_model == "pico" and data.library_name == "peft"
    f1 = next(r for r in data.eval_results if r.metric_type == "f1")
    table = json.loads((run.folder / "steps/comparison/table.json").read_text())
    assert f1.metric_value == round(next(r["value"] for r in table if r["arm"] == "tuned" and r["metric"] == "f1"), 4)
    measured = {(r["set"], r["metric"]) for r in table if r["arm"] == "tuned"}
    assert {(r.dataset_type, r.metric_type) for r in data.eval_results} == measured, "every number, and none twice"
    assert data.license == "other" and (run.folder / data.license_link).is_dir() and data.base_model_relation == "adapter"


def test_the_hub_reads_the_same_results_in_every_form(run, tmp_path):
    """Against the hub's own reader: its results, written back by it, are those of the card; no key is one it doesn't know."""
    import yaml
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

    for form in ("adapter", "model", "gguf"):
        text = card.card(run, run.step("tuned"), form, ())
        written = yaml.safe_load(text.split("---")[1])
        name, results = model_index_to_eval_results(written["model-index"])
        assert eval_results_to_model_index(name, results) == written["model-index"]
        assert ModelCard(text).data.to_dict() == written
        assert written["base_model_relation"] == {"adapter": "adapter", "model": "finetune", "gguf": "quantized"}[form]


def test_the_card_holds_data_evidence_receipts_and_terms(run):
    text = card.card(run, run.step("tuned"), "model", ())
    row = {"set": "unseen", "arm": "tuned", "metric": "f1", "value": 0.5, "low": 0.25, "high": 0.75, "questions": 9,
           "clusters": 7}
    assert "| unseen | tuned | f1 | 0.500 | 0.250 to 0.750 | 9 | 7 |" in card._evidence(run, [row])
    assert "95% interval" in text and "| rows | " in text and "receipts of the run agree" in text
    assert "`licenses/" in text and "luthier 0." in text


def test_what_was_left_out_is_counted_by_its_kind_of_reason(tmp_path):
    from luthier.core.artifact import open_artifact, write_examples
    from luthier.core.example import Dropped

    reasons = ["duplicate of a", "duplicate of b", "too long: 9", "empty | odd"]
    write_examples(tmp_path / "a", {}, [Dropped(str(n), r, "") for n, r in enumerate(reasons)])
    assert card._left_out(open_artifact(tmp_path / "a")) == "2 duplicate, 1 too long, 1 empty \\| odd"


def test_the_licence_of_a_base_with_known_terms_is_named():
    assert card._licence("gemma3-270m") == {"license": "gemma"} and card._licence("pico")["license"] == "other"


def test_a_wrong_merge_is_kept_aside_and_named(run, tmp_path, monkeypatch):
    whole = exporting._merge

    def wrong(model: Any, tuned: Any) -> None:
        whole(model, tuned)
        next(model.module.parameters()).data.mul_(1.05)

    monkeypatch.setattr(exporting, "_merge", wrong)
    monkeypatch.setattr(exporting, "_reloaded", lambda folder, base, a, d, prompts: [torch.zeros(1)] * len(prompts))
    with pytest.raises(GateError, match=r"merged = unmerged: distance .*kept in .*out\.failed"):
        export(run, "model", out=tmp_path / "out")
    assert not (tmp_path / "out").exists() and (tmp_path / "out.failed" / "config.json").exists()
    with pytest.raises(GateError, match=r"out\.failed-2"):
        export(run, "model", out=tmp_path / "out")


def test_what_can_not_be_exported_is_refused(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        export(run, "adapter", out=tmp_path / "full")
    assert [p.name for p in Path(tmp_path / "full").iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="legal are adapter, model, gguf"):
        export(run, "onnx")
    with pytest.raises(UserError, match="nothing to export"):
        export(run, "model", arm="base")
    with pytest.raises(UserError, match="Did you mean 'tuned'"):
        export(run, "model", arm="tunde")


def test_a_gguf_file_holds_the_tuned_model_in_8_bits(run, tmp_path):
    gguf = pytest.importorskip("gguf")
    folder, found = export(run, "gguf", out=tmp_path / "gguf")
    by = {f.name: f for f in found}
    assert by["export/merged = unmerged"].verdict == "agrees"
    assert by["export/exported = trained, rounded"].verdict == "agrees"
    assert "rounding to 8 bits itself moved" in by["export/exported = trained, rounded"].detail
    assert by["export/llama.cpp = trained, rounded"].verdict in ("agrees", "not applicable")
    assert open_artifact(folder).kind == "gguf" and any((folder / "licenses").iterdir())
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(folder / "model.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q8_0" and kinds["output_norm.weight"] == "F32"
    assert 'TEMPLATE """Question: {{ .Prompt }}\nAnswer:"""' in (folder / "Modelfile").read_text()
    assert "llama.cpp" in (folder / "README.md").read_text()


def test_a_wrong_gguf_file_is_found(run, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    from luthier.engine import gguf_file

    def unturned(model: Any, config: Any) -> Any:  # without the other order of queries and keys
        for key, tensor in model.state_dict().items():
            yield key, tensor.detach().float().numpy()

    monkeypatch.setattr(gguf_file, "_tensors", unturned)
    with pytest.raises(GateError, match="exported = trained, rounded: distance"):
        export(run, "gguf", out=tmp_path / "out")


@pytest.mark.parametrize(("scale", "agrees"), [(1.0, True), (1.5, False)])
def test_the_distance_of_llamacpp_is_judged_by_its_rounding(pico, monkeypatch, scale, agrees):
    """A stand-in that rounds to 8 bits what enters each layer, by numpy and row by row; and one whose last norm is wrong."""
    model = load_base(pico)
    heard = copy.deepcopy(model.module)
    norm = heard.get_decoder().norm.weight.data
    norm.mul_(scale)

    def coarse(module, entering):
        rows = entering[0].detach().numpy().reshape(-1, 32)
        step = np.abs(rows).max(1, keepdims=True) / 127
        near = np.rint(rows / np.where(step > 0, step, 1)) * step
        return (torch.from_numpy(near.reshape(entering[0].shape).astype("float32")),)

    for layer in heard.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(coarse)

    class Llama:
        def __init__(self, path, **_):
            self.scores = None

        def tokenize(self, text):
            return model.tokenizer(text.decode())["input_ids"]

        def eval(self, ids):
            with torch.no_grad():
                self.scores = heard(torch.tensor([ids])).logits[0].numpy()

        reset = close = lambda self: None

    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=Llama))
    prompts = [model.tokenizer(p)["input_ids"] for p in exporting.PROMPTS]
    found = exporting._llamacpp(Path("model.gguf"), prompts, model, exporting._numbers(model, prompts))
    assert (found.verdict == "agrees") == agrees and found.tolerance > 0 and found.right > 0
