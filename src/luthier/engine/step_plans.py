"""What one training and one arm will take: memory by part, time, disk.

Rows are encoded and batched as the step will do it; the model is built without weights, the method is put on it, and the
largest and the mean micro-batch go through the meter (`metering`). FLOP, bytes and calls become seconds by rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.core.artifact import Artifact
from luthier.core.step import Ctx, FitCtx
from luthier.engine.hardware import KERNELS, Rates, rates

if TYPE_CHECKING:
    from luthier.engine.loop import Task
    from luthier.engine.metering import Work
    from luthier.engine.models import Model
    from luthier.engine.steps.fit import Fit

MB = 1e6
# Allocators and kernels keep more than the tensors; measured over the workloads of benchmarks/plan_accuracy.py.
SLACK = 1.06
GENERATED_ROWS = 16
# On a processor a compiled kernel is kept for each shape of a bfloat16 product, each about so large (measured: 145 MB for
# 128 of them, over products of 800 shapes).
KERNEL_BYTES = 1.1e6
MOST_STEPS = 64


@dataclass
class StepPlan:
    """One step. `memory` names its parts in MB and does not count the process itself; `work` becomes seconds."""

    name: str
    use: str
    memory: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    disk_mb: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    # What the seconds are made of, for other rates than this machine's.
    work: Any = None
    dtype: str = ""

    @property
    def peak_mb(self) -> float:
        """Sum of the parts."""
        return sum(self.memory.values())


def resident_mb() -> float:
    """This process with its libraries, as it stands: what every run has before it loads a model."""
    import psutil

    return float(psutil.Process().memory_info().rss) / MB


# --- training --------------------------------------------------------------------------------------------------


def plan_fit(fit: Fit, inputs: Mapping[str, Artifact], ctx: Ctx, here: Rates, name: str = "fit") -> StepPlan:
    """Memory by part, seconds and disk of one training; `inputs` as the step gets them."""
    import torch

    from luthier.engine import new_tokens
    from luthier.engine.encoding import encode_tasks
    from luthier.engine.metering import Work, meta_model, passed, state_bytes
    from luthier.engine.models import folder_of

    base = inputs["base"]
    dtype = ctx.engine.dtype(base, training=True) if fit.dtype == "auto" else getattr(torch, fit.dtype)
    model = meta_model(folder_of(base), base, dtype)
    model.name = str(base.meta["name"])
    fit._check_architecture(model)
    if fit.new_tokens:
        model = new_tokens.extend(model, fit.new_tokens)
    render = fit._render(model, inputs)
    tasks, _ = encode_tasks(fit.tasks, model, render, inputs, ctx)
    weights = _bytes(model)
    fit_ctx = FitCtx(**ctx.__dict__, inputs=inputs)
    model = fit.method.prepare(model, fit_ctx)
    for regularizer in fit.regularizers:
        model = regularizer.prepare(model, fit_ctx)
    for task, spec in zip(tasks, fit.tasks, strict=True):
        if spec.head is not None:
            model.heads[task.name] = spec.head.build(model, model.labels.get(task.name, [])).to("meta")
    new_tokens.train(model)
    trained = {id(p): p for m in (model.module, *model.heads.values()) for p in m.parameters() if p.requires_grad}
    count = sum(p.numel() for p in trained.values())
    short = sum(p.numel() for p in trained.values() if p.dtype != torch.float32)
    largest = max((p.numel() for p in trained.values()), default=0)
    kept = state_bytes(fit.optimizer) * count
    roles = {r for t in fit.tasks for r in t.objective.roles}
    steps, batches = _batches(fit, tasks, model, ctx)
    peak = None
    step_work = Work()
    for task, cuts in zip(tasks, batches, strict=True):
        head = model.heads.get(task.name)
        rows, tokens, learned = max(cuts, key=lambda c: (c[1], c[2]))
        top = passed(model, rows, tokens, learned, head)
        peak = top if peak is None or top.peak > peak.peak else peak
        rows, tokens, learned = (max(1, round(sum(c[i] for c in cuts) / len(cuts))) for i in range(3))
        per_step = len(cuts) / max(1, min(steps, MOST_STEPS))
        step_work = step_work + passed(model, rows, tokens, learned, head).work.times(per_step)
    assert peak is not None
    # Each trained number: gradient and masters read and written, two states read and written, the weight written.
    step_work = step_work + Work({}, count * (kept / max(count, 1) * 2 + 24), 14 * len(trained))
    masters, gradients = 4 * short, 4 * short
    # Beside the state: the gradients of a step and what the update of one weight takes.
    moving = max(gradients + peak.peak, 4 * count + 4 * largest)
    memory = {
        "weights": weights * (1 + len(roles - {"policy"}) if roles else 1),
        "adapter": _bytes(model) - weights, "float32 masters": masters, "optimizer state": kept,
        "activations": peak.activations, "vocabulary chunk": peak.vocabulary,
        "backward and gradients": max(0, peak.backward - peak.vocabulary) + gradients}
    if peak.kernels:
        sizes = len({c[1] for cuts in batches for c in cuts})
        memory["bfloat16 kernels"] = min(KERNELS, peak.kernels * sizes) * KERNEL_BYTES / SLACK
    rest = moving - sum(memory[k] for k in ("activations", "vocabulary chunk", "backward and gradients"))
    memory["update"] = max(0.0, rest)
    checkpoint_bytes = 4 * count + kept
    saved = _bytes(model) if fit.method.artifact == "model" else sum(p.numel() * p.element_size() for p in trained.values())
    work = step_work.times(steps)
    checked = _validation(fit, inputs, model, render, steps, tasks, ctx)
    work = work + checked
    seconds = work.seconds(here) + checkpoint_bytes / here.disk
    return StepPlan(
        name, "fit", {k: v * SLACK / MB for k, v in memory.items()}, seconds, (2 * checkpoint_bytes + saved) / MB,
        {"trained parameters": count, "parameters": model.parameters(), "steps": steps,
         "rows": sum(len(t.rows) for t in tasks), "tokens in the largest micro-batch": max(c[1] for b in batches for c in b),
         **fit.method.planned(model, rows, tokens, learned),
         "flop": sum(work.flops.values()), "checkpoint_mb": checkpoint_bytes / MB, "artifact_mb": saved / MB},
        work=work, dtype=str(dtype).removeprefix("torch."))


def foretold(fit: Fit, inputs: Mapping[str, Artifact], ctx: Ctx) -> dict[str, Any]:
    """A training's plan as its record keeps it beside what was measured; where it can't be planned, why."""
    quiet = Ctx(**{**{k: v for k, v in vars(ctx).items() if k in Ctx.__dataclass_fields__}, "log": lambda text: None})
    floor = resident_mb()
    try:
        made = plan_fit(fit, inputs, quiet, rates(ctx.engine.decisions["threads"]))
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError) as error:
        # A method that reads weights can't be put on a model that has none.
        return {"note": f"not planned: {type(error).__name__}: {error}"}
    return {"peak_mb": round(floor + made.peak_mb, 1), "seconds": round(made.seconds, 4), "floor_mb": round(floor, 1),
            "memory_mb": {k: round(v, 1) for k, v in made.memory.items()}}


def _bytes(model: Model) -> int:
    modules = [model.module, *model.heads.values()]
    found = {id(p): p for m in modules for p in m.parameters()}
    return sum(p.numel() * p.element_size() for p in found.values())


def _batches(fit: Fit, tasks: Sequence[Task], model: Model, ctx: Ctx) -> tuple[int, list[list[tuple[int, int, int]]]]:
    """Optimizer steps, and for each task (rows, tokens, learned tokens) of the micro-batches of the first steps."""
    from luthier.core.kinds import Tokens
    from luthier.engine.batches import by_length, packs_of
    from luthier.engine.coupled import separable
    from luthier.engine.loop import rows_at
    from luthier.engine.metering import packed

    steps = fit.length.in_steps(fit.per_epoch(tasks))
    most_tokens = fit.micro_tokens or 1024
    cut = packs_of if packed(model) else by_length
    found = []
    for task in tasks:
        parts = [[p for p in row.values() if isinstance(p, Tokens)] for row in task.rows]
        lengths = [max((len(p.ids) + len(p.decoder_ids or ()) for p in row), default=1) for row in parts]
        sequences = max((len(row) for row in parts), default=1) or 1
        learned = [sum(sum(p.targets) for p in row) for row in parts]
        cuts = []
        together = "coupled" in task.objective.parts.values() and not separable(task.objective)
        for step in range(max(1, min(steps, MOST_STEPS))):
            rng = ctx.rng.within("loop").within(task.name)
            rows = [int(r) for r in rows_at(rng, step, len(task.rows), fit.batch_rows)]
            own = [lengths[r] for r in rows]
            places = [list(range(len(rows)))] if together else cut(own, fit.micro_rows or fit.batch_rows, most_tokens)
            for group in places:
                # Padded rows are as long as the longest of them.
                size = sum(own[i] for i in group) if cut is packs_of else max(own[i] for i in group) * len(group)
                cuts.append((len(group) * sequences, size * sequences, sum(learned[rows[i]] for i in group)))
        found.append(cuts)
    return steps, found


def _validation(fit: Fit, inputs: Mapping[str, Artifact], model: Model, render: Any, steps: int, tasks: Sequence[Task],
                ctx: Ctx) -> Work:
    """The loss on the validation rows, once an epoch."""
    from luthier.core.kinds import Tokens
    from luthier.engine.encoding import encode, subset
    from luthier.engine.metering import Work, passed

    if "validation" not in fit.streams:
        return Work()
    rows = encode(subset(inputs, fit.streams["validation"]), fit.tasks[0].objective, render, ctx.rng).rows
    epochs = steps // math.ceil(len(tasks[0].rows) / fit.batch_rows)
    parts = [p for row in rows for p in row.values() if isinstance(p, Tokens)]
    if not parts or not epochs:
        return Work()
    tokens = round(sum(len(p.ids) + len(p.decoder_ids or ()) for p in parts) / len(parts))
    learned = round(sum(sum(p.targets) for p in parts) / len(parts))
    batch = min(fit.batch_rows, len(rows))
    head = model.heads.get(tasks[0].name)
    one = passed(model, batch, batch * max(1, tokens), batch * learned, head=head, backward=False)
    return one.work.times(epochs * len(rows) / batch)


# --- answering -------------------------------------------------------------------------------------------------


def plan_answers(step: Any, inputs: Mapping[str, Artifact], ctx: Ctx, here: Rates, name: str) -> StepPlan:
    """One arm: at most `max_new_tokens` for every question of its sets, and for those of dev that choose the prompt."""
    from luthier.engine.metering import Work, meta_model, passed
    from luthier.engine.models import folder_of
    from luthier.engine.rendering import renderer

    base, examples = inputs["base"], inputs["examples"]
    model = meta_model(folder_of(base), base, ctx.engine.dtype(base))
    rows = [e for s in step.sets if s in examples.subsets for e in examples.examples(s)]
    weights = _bytes(model)
    if model.architecture == "encoder" or not rows:
        return StepPlan(name, "evaluate", {"weights": weights / MB}, note="labels: one pass over the rows")
    render = renderer(model)
    lengths = [len(render.prompt(e)) for e in rows]
    shown = 1 + max(step.shots)
    prompt = max(lengths) * shown
    options = len(step.instructions) * len(step.shots)
    dev = min(step.dev_rows, sum(1 for _ in examples.examples("dev"))) if options > 1 or len(step.stops) > 1 else 0
    asked = len(rows) + dev * options
    batch = min(GENERATED_ROWS, max(1, len(rows)))
    new = int(step.decoder.max_new_tokens)
    read = passed(model, batch, batch * round(sum(lengths) / len(lengths)) * shown, batch, backward=False)
    spoken = passed(model, batch, batch, batch, backward=False).work
    batches = math.ceil(asked / batch)
    # Each new token reads every weight once and calls every layer.
    token = spoken + Work({}, weights, 0)
    work = read.work.times(batches) + token.times(batches * new)
    vocabulary = model.module.get_output_embeddings().weight.shape[0]
    memory = {"weights": weights, "key/value cache": _cache_bytes(model, batch, prompt + new),
              "activations": read.activations, "scores": 3 * 4 * batch * vocabulary}
    return StepPlan(name, "evaluate", {k: v * SLACK / MB for k, v in memory.items()}, work.seconds(here), 0.1,
                    {"questions": asked, "new tokens at most": asked * new}, note="time: at most", work=work)


def _cache_bytes(model: Model, rows: int, tokens: int) -> int:
    """Keys and values of all layers."""
    config = model.module.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * rows * tokens * 2)
