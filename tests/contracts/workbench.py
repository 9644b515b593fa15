"""What the contract suites share: example specs, example rows, a spy on training, and a loop made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from luthier.core.artifact import Artifact, write_examples
from luthier.core.component import Component, build, find
from luthier.core.example import Document, Example, Part, Passage, Section, SourceFile, Turn, question
from luthier.core.index import rows
from luthier.core.kinds import DroppedRow, Objective
from luthier.core.step import Ctx, FitCtx
from luthier.engine.batches import Batch, collate
from luthier.engine.forward import Forward
from luthier.engine.loop import Loop, Plan, Task
from luthier.engine.models import Model
from luthier.engine.rendering import renderer
from luthier.engine.steps.fit import Fit
from tests.contracts import loras

WORDS = "module class object list dict name scope block import yield".split()

# Values for components that can't be built from their defaults. A field may also carry `examples` of its own.
ARGUMENTS: dict[tuple[str, str], dict[str, Any]] = {
    ("data_step", "slick"): {"prompts": 2, "samples": 2},
    ("method", "peft"): {"type": "IA3"},
    ("method", "meteora"): {"adapters": loras.two},
    ("method", "parts"): {"body": "stack", "train": ["layers"]},
    ("data_step", "clear"): {"samples": 2, "similarity": "same", "decoder": {"use": "sample", "max_new_tokens": 2}},
    ("regularizer", "booster"): {"data": "examples.dev"},
    ("regularizer", "ewc"): {"data": "examples.dev"},
    ("data_step", "rerank"): {"metric": "f1"},
    ("data_step", "composite"): {"n": 2, "rows": 3},
    ("step", "base"): {"model": "pico"},
    ("step", "given"): {"kind": "examples"},
    ("step", "repeat"): {"steps": {"fit": {"use": "fit", "inputs": {"base": "base", "examples": "examples"}}},
                         "carry": {"examples": "fit"}, "result": "fit"},
}
_BY_TYPE = {"string": "x", "integer": 1, "number": 1.0, "boolean": True, "array": ["x"], "object": {}}


def shipped(kind: str = "") -> list[Any]:
    """Pytest parameters: the index lines of one kind, or of all."""
    import pytest

    found = [r for r in rows() if not kind or r["kind"] == kind]
    return [pytest.param(r, id=f"{r['kind']}-{r['name']}" if not kind else r["name"]) for r in found]


def arguments(row: Mapping[str, Any]) -> dict[str, Any]:
    """Values that a component can't be built without: from the table, the field's own examples, or its type."""
    known = {n: v() if callable(v) else v for n, v in ARGUMENTS.get((row["kind"], row["name"]), {}).items()}
    fields = row["schema"].get("properties", {})
    made = {name: fields[name].get("examples", [_BY_TYPE.get(fields[name].get("type", ""), "x")])[0]
            for name in row["schema"].get("required", []) if name not in known}
    return {**made, **known}


def example_of(row: Mapping[str, Any], **changed: Any) -> Any:
    """The component of an index line."""
    if (row["kind"], row["name"]) == ("method", "peft"):
        from luthier.techniques.methods.peft import TABLE

        if not TABLE.exists():
            import pytest

            pytest.skip("which of PEFT's types work has not been probed: python scripts/probe_peft.py")
    return build(row["kind"], {"use": row["name"], **arguments(row), **changed})


def class_of(row: Mapping[str, Any]) -> type[Component]:
    """The class of an index line."""
    return find(row["kind"], row["name"])


def examples(count: int = 8) -> list[Example]:
    """Questions of different length, with answers, labels of two kinds and clusters."""
    made = []
    for i in range(count):
        word = WORDS[i % len(WORDS)]
        made.append(question(f"q{i}", f"What is a {word}{' in the language' * (i % 3)}?", f"a {word} of the {word}",
                             passage=f"A {word} is a {word} of the {word}.", label=("thing", "word")[i % 2],
                             source=f"s{i // 2}", cluster=f"c{i // 2}", references=(f"the {word}",),
                             meta={"paraphrases": [f"Say what a {word} is."], "candidate": f"a {word}", "rating": 1 + i % 5,
                                   "task": ("thing", "word")[i % 2], "similarity": i % 2},
                             rejected=Turn("assistant", (Part(f"no {word}{' at all' * (i % 2)}"),), target=True)))
    return made


def passages(count: int = 6) -> list[Passage]:
    """Passages that share few words."""
    return [Passage(f"p{i}", f"{w.capitalize()} {w} explained. A {w} keeps the {w}s of section {i} in row {i}.",
                    f"d{i // 2}", f"d{i // 2}#s{i}", (f"Chapter {i // 2}", w)) for i, w in enumerate(WORDS[:count])]


def rows_for(step: Any, folder: Any) -> list[Any]:
    """Rows of the type that a data step says it reads."""
    wanted = str(type(step).apply.__annotations__["rows"])
    if "Passage" in wanted:
        return passages()
    if "Document" in wanted:
        return [Document(f"d{w}", w, (Section((w,), f"The {w} is here.\n\nIt stays."),)) for w in WORDS[:3]]
    if "SourceFile" in wanted:
        return source_files(step, folder)
    return examples()


def stream(name: str) -> list[Any]:
    """What a step's inputs may offer to a data step besides its rows: passages, and their texts by id."""
    return {"passages": passages(), "texts": [(p.id, p.text) for p in passages()]}.get(name, [])


def source_files(step: Any, folder: Any) -> list[SourceFile]:
    """One good file of a reader's own suffix."""
    text = {".jsonl": '{"question": "What is a module?", "answer": "a file", '
                      '"query": "module", "doc_id": "p0", "clicks": 2}\n',
            ".html": '<html><body itemscope itemtype="https://schema.org/FAQPage"><h1>Module</h1><p>A module is a file.</p>'
                     '<div itemprop="mainEntity" itemscope itemtype="https://schema.org/Question"><h2 itemprop="name">What is '
                     'a module?</h2><div itemprop="acceptedAnswer" itemscope itemtype="https://schema.org/Answer"><p '
                     'itemprop="text">A file.</p></div></div></body></html>',
            ".json": '[{"question": "What is a module?", "answer": "a file"}]',
            ".csv": "question,answer\nWhat is a module?,a file\n"}
    suffix = getattr(type(step), "suffixes", None) or (".jsonl",)
    path = folder / f"file{suffix[0]}"
    path.write_text(text.get(suffix[0], "# Module\n\nA module is a file.\n"))
    return [SourceFile(path.name, str(path))]


def same_or_nan(left: float, right: float) -> bool:
    """Equal to 1e-9, or both not a number."""
    return abs(left - right) <= 1e-9 or (left != left and right != right)


# --- training by the step ------------------------------------------------------------------------------------------

def task_for(architecture: str) -> dict[str, Any]:
    """A task that this architecture can learn."""
    if architecture == "encoder":
        return {"data": "examples.train", "objective": "classify", "head": "linear:dropout=0"}
    return {"data": "examples.train", "objective": "supervised"}


def training_data(ctx: Ctx, count: int = 8) -> Artifact:
    """An examples artifact with subsets train and dev."""
    made = examples(count)
    return write_examples(ctx.folder, {"train": made, "dev": made[:3]})


def short_fit(architecture: str, **changed: Any) -> Fit:
    """A Fit of a few steps over the same few rows, at a rate that moves pico models."""
    return Fit(**{"tasks": (task_for(architecture),), "length": {"steps": 12}, "batch_rows": 8, "learning_rate": 1e-2,
                  "schedule": "constant", **changed})


def tuned_logits(model: Model) -> torch.Tensor:
    """Scores of a model on fixed rows, evaluation mode: of its vocabulary, or of its heads."""
    render = renderer(model, 128)
    for module in (model.module, *model.heads.values()):
        module.eval()
    run = Forward({"policy": model})
    with torch.no_grad():
        if model.heads:
            batch = make_batch([{"input": render.text(e)} for e in examples(4)], model)
            features = run("policy", batch["input"]).pooled()
            return torch.cat([head(features) for head in model.heads.values()], -1)
        batch = make_batch([{"input": render.tokens(e)} for e in examples(4)], model)
        return run("policy", batch["input"]).logits()


# --- training by hand ----------------------------------------------------------------------------------------------

def encode(objective: Objective, model: Model, given: Sequence[Example], max_tokens: int = 256) -> list[Any]:
    """Features of the rows that an objective can use."""
    from luthier.core.rng import Rng

    render = renderer(model, max_tokens)
    render.labels = sorted({str(e.label) for e in given if e.label is not None})
    render.routes = ("thing", "word")
    found = []
    for example in given:
        try:
            found.append(objective.encode(example, render, Rng(0).within(f"encode/{example.id}")))
        except DroppedRow:
            continue
    return found


def make_batch(features: Sequence[Any], model: Model) -> Batch:
    """One batch of all rows."""
    return collate(features, [str(i) for i in range(len(features))], model.tokenizer.pad_token_id or 0)


def make_loop(model: Model, objective: Objective, features: Sequence[Any], ctx: Ctx, *, roles: Mapping[str, Any] = {},
              steps: int = 4, batch_rows: int = 4, micro_rows: int = 4, rate: float = 1e-2, optimizer: str = "adamw",
              hooks: Sequence[Any] = (), **plan: Any) -> Loop:
    """A loop over one task, with what requires a gradient as the trained weights."""
    def groups() -> list[dict[str, Any]]:
        modules = [model.module, *model.heads.values()]
        return [{"params": [p for m in modules for p in m.parameters() if p.requires_grad]}]

    task = Task("task", objective, features, [f"row{i}" for i in range(len(features))])
    fit_ctx = FitCtx(**ctx.__dict__)
    loop = Loop(Forward({"policy": model, **roles}), [task], Plan(steps, batch_rows, micro_rows, rate, **plan), groups,
                build("optimizer", optimizer), build("schedule", "constant"), fit_ctx)
    loop.hooks = list(hooks)
    return loop


def labelled(given: Sequence[Example], label: str) -> list[Example]:
    """The same rows with one label."""
    return [replace(e, label=label) for e in given]
