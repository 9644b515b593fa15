"""Luthier on a workload: `luthier_fit.py prepare FOLDER`, or `luthier_fit.py train FOLDER [--steps N …]`.

`train` runs the fit step twice in one process: on the warm-up rows, where anything compiled is compiled, then on the
rows. Time, tokens and losses are what the step itself writes (`cost.json`, `curve.jsonl`). Before and after, the rates
of the machine are measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import bound
import measure
import peft
import torch
import transformers
import workloads
from safetensors.torch import save_file

from luthier.core.artifact import open_artifact
from luthier.core.component import build
from luthier.core.kinds import Hook, Method, Regularizer
from luthier.core.recipe import Recipe
from luthier.engine.executor import execute
from luthier.engine.rendering import renderer
from luthier.engine.workshop import Engine

# Loaded late otherwise, and then not part of the floor.
USED = (peft.get_peft_model, transformers.AutoModel, transformers.AutoModelForCausalLM, transformers.AutoTokenizer)
FLOOR = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


class _Record(Hook):
    """Keeps the new weights as they start (adapter and head; all others are the base's), and the rows of every step."""

    def __init__(self, model: Any, folder: Path, adapter: bool) -> None:
        named = {n: p for n, p in model.module.named_parameters() if p.requires_grad} if adapter else {}
        heads = {f"head.{n.rpartition('.')[2]}": p for h in model.heads.values() for n, p in h.named_parameters()}
        if named or heads:
            save_file({n: p.detach().float().clone() for n, p in {**named, **heads}.items()}, folder / "initial.safetensors")
        self.batches: list[list[str]] = []

    def on_batch(self, batch: Any) -> list[Any]:
        self.batches.append(list(batch["ids"]))
        return [batch]

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches[:] = state["batches"]


class Recorder(Regularizer, name="bench-recorder"):
    """Adds nothing to training and writes down what it sees."""

    folder: str
    adapter: bool = False
    hooks: ClassVar[list[_Record]] = []

    def start(self, model: Any, ctx: Any) -> Hook:
        self.hooks.append(_Record(model, Path(self.folder), self.adapter))
        return self.hooks[-1]


class TopLayers(Method, name="bench-top-layers"):
    """Trains the last `share` of the layers and nothing else; leaves the weights that moved."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "delta"
    share: float = 0.25

    def prepare(self, model: Any, ctx: Any) -> Any:
        layers = layers_of(model.module)
        for layer in layers[len(layers) - top_count(layers, self.share):]:
            layer.requires_grad_(True)
        return model

    def defaults(self, model: Any, rows: int) -> dict[str, Any]:
        return {}


def layers_of(module: Any) -> Any:
    """The list of layers of a transformers model: the longest list of modules in it."""
    return max((m for m in module.modules() if isinstance(m, torch.nn.ModuleList)), key=len)


def top_count(layers: Any, share: float) -> int:
    """How many layers the top `share` is, at least one."""
    return max(1, round(share * len(layers)))


def recipe(asked: workloads.Workload, rows: Path, steps: int | None, **extra: Any) -> Recipe:
    """The workload as a recipe of three steps."""
    methods = {"lora": {"use": "lora", "rank": asked.rank, "alpha": asked.alpha}, "full": "full",
               **{name: name for name in bound.VECTORS},
               "top-layers": {"use": "bench-top-layers", "share": asked.top_share}}
    labels = {"objective": "classify", "head": "linear:dropout=0"}
    task = {"data": "examples.all", **(labels if asked.task == "classify" else {"objective": "supervised"})}
    fit = {"use": "fit", "tasks": [task], "method": methods[asked.method], "schedule": "linear:warmup=0",
           "length": {"steps": steps} if steps else {"epochs": asked.epochs}, "learning_rate": asked.learning_rate,
           "batch_rows": asked.batch_rows, "max_tokens_per_example": asked.max_tokens, "dtype": asked.dtype,
           "over_long": "truncate" if asked.task == "classify" else "drop",
           "inputs": {"base": "base", "examples": "examples"}, **extra}
    return Recipe({"name": asked.name, "seed": 0, "steps": {
        "base": {"use": "base", "model": asked.base}, "examples": {"use": "read", "path": str(rows)}, "fit": fit}})


def fit(asked: workloads.Workload, rows: Path, out: Path, engine: Engine, steps: int | None, **extra: Any) -> Path:
    """Run it anew in `out`; the folder of the fitted artifact."""
    shutil.rmtree(out, ignore_errors=True)
    execute(recipe(asked, rows, steps, **extra), out, engine)
    return out / "steps" / "fit"


def prepare(folder: Path, asked: workloads.Workload, engine: Engine, file_order: bool, most: int | None) -> None:
    """Write workload.json and initial.safetensors after one epoch, or `most` steps of it, with the recorder.

    `file_order`: no training, the rows as they come and no initial weights, for workloads whose losses nobody compares.
    """
    per_epoch = min(most or asked.steps, asked.steps // asked.epochs)
    steps = folder / "prepared" / "steps"
    if file_order:
        text = recipe(asked, folder / "rows.jsonl", None).text
        execute(Recipe({**text, "steps": {n: text["steps"][n] for n in ("base", "examples")}}), steps.parent, engine)
    else:
        fit(asked, folder / "rows.jsonl", steps.parent, engine, per_epoch,
            regularizers=[{"use": "bench-recorder", "folder": str(folder), "adapter": asked.method == "lora"}])
    base = open_artifact(steps / "base")
    model = engine.fresh(base, torch.float32)
    examples = {e.id: e for e in open_artifact(steps / "examples").examples("all")}
    names = list(examples)
    batches = ([names[i:i + asked.batch_rows] for i in range(0, len(names), asked.batch_rows)] if file_order
               else Recorder.hooks[-1].batches[:per_epoch])
    labels = sorted({str(e.label) for e in examples.values() if e.label is not None})
    render = renderer(model, asked.max_tokens, over_long="truncate" if asked.task == "classify" else "drop")
    made = []
    for batch in batches:
        for name in batch:
            example = examples[name]
            tokens = render.text(example) if labels else render.tokens(example)
            texts = {"prompt": example.turns[0].text, "completion": example.answer} if not labels else {}
            made.append({"id": name, "ids": [int(i) for i in tokens.ids], "learned": [int(t) for t in tokens.targets], **texts,
                         **({"label": labels.index(str(example.label))} if labels else {})})
    layers = layers_of(model.module)
    (folder / "workload.json").write_text(json.dumps({
        **json.loads((folder / "asked.json").read_text(encoding="utf-8")), "path": base.meta["path"], "labels": labels,
        "bos": model.tokenizer.bos_token or "", "eos": model.tokenizer.eos_token or "",
        "batches": [len(b) for b in batches], "order": made, "tokens": sum(len(r["ids"]) for r in made),
        "trained_tokens": sum(sum(r["learned"]) for r in made),
        "top_share_reached": top_count(layers, asked.top_share) / len(layers),
        "shapes": bound.shapes_of(model.module, asked.rank).__dict__}), encoding="utf-8")
    shutil.rmtree(folder / "prepared")


def train(folder: Path, asked: workloads.Workload, engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """Warm up, then the measured training between two measurements of the machine."""
    made = json.loads((folder / "workload.json").read_text(encoding="utf-8")) if (folder / "workload.json").exists() else {}
    began, kept = time.perf_counter(), None
    if options.warm_up_steps:
        warm = fit(asked, folder / "warm-up.jsonl", folder / "warm-up", engine, options.warm_up_steps)
        kept = json.loads((warm / "cost.json").read_text())
    warm_up = time.perf_counter() - began
    before = rates(made, asked, options)
    fitted = fit(asked, folder / "rows.jsonl", folder / f"run-{options.label}", engine, options.steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(measure.MARK, flush=True)
    after = rates(made, asked, options)
    cost = json.loads((fitted / "cost.json").read_text())
    curve = [json.loads(line) for line in (fitted / "curve.jsonl").read_text().splitlines()]
    per_epoch = asked.steps // asked.epochs
    marks = [0.0, *(row["seconds"] for row in curve[per_epoch - 1::per_epoch])]
    record = json.loads((fitted / "luthier.json").read_text())
    shutil.rmtree(fitted.parents[1])
    shutil.rmtree(folder / "warm-up", ignore_errors=True)
    return {"tokens_per_second": cost["tokens"] / cost["seconds"], "tokens": cost["tokens"], "seconds": cost["seconds"],
            "losses": [row["loss"] for row in curve], "epoch_seconds": [b - a for a, b in pairwise(marks)],
            "warm_up_seconds": round(warm_up, 2), "warm_up_training_seconds": kept["seconds"] if kept else None,
            "floor_mb": round(FLOOR, 1), "maxrss_mb": round(peak, 1), "decisions": record["fit"].get("decisions", {}),
            **({"bound": bounds(made, asked, before, after)} if before and after else {}),
            "versions": measure.versions(("luthier", "torch", "transformers", "peft"))}


def rates(made: dict[str, Any], asked: workloads.Workload, options: argparse.Namespace) -> dict[str, float] | None:
    """The machine's rates in the shapes of this workload; their memory is not counted as ours."""
    if not made or options.no_bound:
        return None
    rows = max(1, round(made["tokens"] / len(made["batches"])))
    print(measure.PAUSE, flush=True)
    found = bound.measure(bound.Shapes.from_dict(made["shapes"]), rows, getattr(torch, asked.dtype), options.bound_seconds)
    print(measure.RESUME, flush=True)
    return found


def bounds(made: dict[str, Any], asked: workloads.Workload, before: dict[str, float],
           after: dict[str, float]) -> dict[str, Any]:
    """Tokens per second that the measured rates allow; the mean of before and after."""
    shapes = bound.Shapes.from_dict(made["shapes"])
    work = {kept: bound.training_flops(shapes, made["tokens"], made["trained_tokens"], asked.method,
                                       made["top_share_reached"], kept) for kept in (False, True)}
    full = bound.training_flops(shapes, made["tokens"], made["trained_tokens"], "full")
    rate = {name: (before[name] + after[name]) / 2 * 1e9 for name in ("gemm_gflops", "square_gflops")}
    return {"flops_per_token": work[False] / made["tokens"], "later_epochs_of_full": work[True] / full,
            "first_epoch_of_full": work[False] / full, **bound.spread(before, after),
            "tokens_per_second": rate["gemm_gflops"] * made["tokens"] / work[False],
            "square_tokens_per_second": rate["square_gflops"] * made["tokens"] / work[False]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["prepare", "train"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--warm-up-steps", type=int, default=0)
    parser.add_argument("--method", help="train it another way than the workload says")
    parser.add_argument("--file-order", action="store_true", help="prepare without training")
    parser.add_argument("--label", default="0")
    parser.add_argument("--no-bound", action="store_true")
    parser.add_argument("--bound-seconds", type=float, default=2.0)
    options = parser.parse_args()
    values = json.loads((options.folder / "asked.json").read_text(encoding="utf-8"))
    if options.method:
        values["method"] = options.method
    asked = workloads.Workload(**values)
    engine = Engine()
    build("regularizer", {"use": "bench-recorder", "folder": "."})  # fails here, not in the middle, if it is not known
    if options.what == "prepare":
        prepare(options.folder, asked, engine, options.file_order, options.steps)
        print(json.dumps({"prepared": asked.name}))
    else:
        print(json.dumps(train(options.folder, asked, engine, options)))


if __name__ == "__main__":
    main()
