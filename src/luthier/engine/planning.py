"""Planning: what a recipe will take before it runs: memory by part, time, disk.

A dry pass. The steps that only read (base, rows, documents, split) run for real in a folder that is thrown away, so
that lengths, batches and micro-batches are the very ones of the run; trainings and arms are planned one by one
(`step_plans`), by the rates of this machine, or by the data sheet of a GPU, which is a prediction and labelled so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from luthier.core.artifact import Artifact
from luthier.core.files import Journal
from luthier.core.recipe import Node, Recipe
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.engine.hardware import GPU_CONTEXT_MB, Gpu, gpu_rates, rates
from luthier.engine.step_plans import MB, StepPlan, plan_answers, plan_fit, resident_mb

if TYPE_CHECKING:
    from luthier.engine.workshop import Engine

# Steps that read and divide; they run for real.
READS = ("base", "read", "ingest", "split", "test-questions", "test-rows", "existing")


@dataclass
class RunPlan:
    """A whole recipe on one machine."""

    machine: str
    steps: list[StepPlan]
    floor_mb: float
    available_mb: float
    free_disk_mb: float
    prediction: bool = False
    rates: dict[str, Any] = field(default_factory=dict)

    @property
    def peak_mb(self) -> float:
        """The highest step, and the process with its libraries."""
        return self.floor_mb + max((s.peak_mb for s in self.steps), default=0.0)

    @property
    def seconds(self) -> float:
        """All steps that were planned."""
        return sum(s.seconds for s in self.steps)

    @property
    def disk_mb(self) -> float:
        """What is written, checkpoints at their largest."""
        return sum(s.disk_mb for s in self.steps)

    @property
    def fits(self) -> bool:
        """Whether memory and disk suffice."""
        return self.peak_mb <= self.available_mb and (self.prediction or self.disk_mb <= self.free_disk_mb)

    def to_dict(self) -> dict[str, Any]:
        """For JSON and for the run's record."""
        steps = [{k: v for k, v in {**vars(s), "peak_mb": round(s.peak_mb, 1)}.items() if k != "work"} for s in self.steps]
        return {"machine": self.machine, "prediction": self.prediction, "fits": self.fits, "peak_mb": round(self.peak_mb, 1),
                "available_mb": round(self.available_mb, 1), "floor_mb": round(self.floor_mb, 1),
                "seconds": round(self.seconds, 2), "disk_mb": round(self.disk_mb, 2),
                "free_disk_mb": round(self.free_disk_mb, 1), "rates": self.rates, "steps": steps}


def plan(recipe: Recipe, engine: Engine, log: Callable[[str], None] = lambda text: None) -> RunPlan:
    """What a recipe will take on this machine.

    Raises:
        UserError: whatever the steps that read refuse.
    """
    import shutil

    from luthier.engine.memory import available_mb
    from luthier.engine.steps.fit import Fit

    here = rates(engine.decisions["threads"])
    steps: list[StepPlan] = []
    done: dict[str, Artifact] = {}
    with TemporaryDirectory() as folder:
        for node in recipe.nodes:
            ctx = _ctx(Path(folder) / node.name, node, recipe, engine, done, log)
            inputs = {n: done[s] for n, s in node.inputs.items() if s in done}
            whole = len(inputs) == len(node.inputs)
            use = str(node.step.info.name)
            if use in READS and whole:
                done[node.name] = node.step.run(inputs, ctx)
            elif use == "synthesize" and "documents" in inputs:
                done[node.name] = _assumed(node.step, inputs, ctx)
                steps.append(StepPlan(node.name, use, note="questions are assumed, one a passage that is asked about: what "
                                                           "a writer makes is known when it has written"))
            elif isinstance(node.step, Fit) and all(n in inputs for n in node.inputs):
                steps.append(plan_fit(node.step, inputs, ctx, here, node.name))
            elif use == "evaluate" and {"base", "examples"} <= set(inputs):
                steps.append(plan_answers(node.step, inputs, ctx, here, node.name))
            elif use not in READS:
                steps.append(StepPlan(node.name, use, note="not planned: small beside training and answering"))
        floor = resident_mb()
    return RunPlan(f"{here.processor}, {here.threads} thread{'s' * (here.threads > 1)}", steps, floor, available_mb() + floor,
                   shutil.disk_usage(Path.cwd()).free / MB, rates=asdict(here))


def on_gpu(planned: RunPlan, gpu: Gpu) -> RunPlan:
    """The same work by a GPU's data sheet: a prediction."""
    assumed = gpu_rates(gpu)
    steps = [StepPlan(**{**vars(s), "seconds": s.work.seconds(assumed) if s.work else s.seconds,
                         "memory": {k: v for k, v in s.memory.items() if k != "bfloat16 kernels"}}) for s in planned.steps]
    return RunPlan(gpu.name, steps, GPU_CONTEXT_MB, gpu.memory_gb * 1e3, planned.free_disk_mb, True, asdict(assumed))


def _ctx(folder: Path, node: Node, recipe: Recipe, engine: Engine, done: Mapping[str, Artifact],
         log: Callable[[str], None]) -> Ctx:
    folder.mkdir(parents=True)
    inputs = {n: done[s] for n, s in node.inputs.items() if s in done}
    return Ctx(Rng(recipe.seed).within(node.name), folder, Journal(folder / "journal.jsonl"), engine, log=log,
               stream=lambda name: inputs[name.partition(".")[0]].examples(name.partition(".")[2]))


def _assumed(step: Any, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
    """Questions as long as questions are: real ones from the sources that need no model, made-up ones for the others."""
    from luthier.core.artifact import write_examples
    from luthier.core.example import Example, question

    rows: list[Any] = []
    for source in step.sources:
        passages = list(inputs["documents"].passages())
        if not source.roles:
            rows += [r for r in source.apply(iter(passages), ctx) if isinstance(r, Example)]
            continue
        for passage in passages[:int(getattr(source, "passages", len(passages)))]:
            words = passage.text.split()
            rows.append(question(
                f"{source.info.name}/{passage.id}/0", " ".join(words[:14]) + "?", " ".join(words[14:20]) or "yes",
                passage=passage.shown, source=passage.id, cluster=passage.section,
                meta={"generator": source.info.name, "gold": [passage.id], "headings": list(passage.headings)}))
    (ctx.folder / "licenses").mkdir(exist_ok=True)
    return write_examples(ctx.folder, {"all": rows})


# --- what would fit --------------------------------------------------------------------------------------------

# Edits of a training from cheapest to dearest: what, its value, and what it costs.
EDITS: tuple[tuple[str, Any, str], ...] = (
    ("micro_tokens", 256, "smaller micro-batches: the same gradients, slower"),
    ("micro_rows", 1, "one row at once: the same gradients, slower"),
    ("checkpoint_activations", True, "activations are computed twice: the same gradients, about a third slower"),
    ("dtype", "bfloat16", "weights in half the size: rounded losses"),
    ("optimizer", "torch:{type: SGD}", "no optimizer state: another training"),
    ("max_tokens_per_example", 256, "longer rows are left out"),
    ("method", "lora", "few weights move: another result, far less memory"),
)


def cheaper(recipe: Recipe, engine: Engine, limit_mb: float, judge: Callable[[RunPlan], RunPlan] = lambda p: p
            ) -> list[dict[str, Any]]:
    """Edits, one upon the other and each planned again, until the plan fits; the last row may not fit either."""
    from luthier.core.errors import UserError
    from luthier.core.recipe import Recipe as Made
    from luthier.engine.steps.fit import Fit

    fits = [n for n in recipe.nodes if n.step.info.name == "fit"]
    found: list[dict[str, Any]] = []
    made: Made = recipe
    first = judge(plan(recipe, engine))
    before = first.peak_mb
    for key, value, why in EDITS:
        if key not in Fit.model_fields or not fits:
            continue
        try:
            tried = made.edit(**{f"{n.name}.{key}": value for n in fits})
            planned = judge(plan(tried, engine))
        except UserError:
            continue  # a part that this recipe or this version can't take
        # The process itself grows a little from plan to plan; only the steps are compared.
        peak = first.floor_mb + planned.peak_mb - planned.floor_mb
        if peak - first.floor_mb > 0.98 * (before - first.floor_mb):
            continue
        made, before = tried, peak
        edits = " ".join(f"--set {n.name}.{key}={value}" for n in fits)
        found.append({"edit": edits, "why": why, "peak_mb": round(peak, 1), "seconds": round(planned.seconds, 1),
                      "fits": peak <= limit_mb})
        if peak <= limit_mb:
            break
    return found
