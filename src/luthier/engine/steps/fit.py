"""Fit: the training step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from luthier.core.artifact import Artifact, open_artifact
from luthier.core.component import Slot, named
from luthier.core.errors import UserError, nearest
from luthier.core.files import write_json, write_lines
from luthier.core.finding import Finding, not_applicable, receipt
from luthier.core.identity import hash_file
from luthier.core.kinds import Default, Head, Method, Objective, Optimizer, Regularizer, Schedule, Tokens
from luthier.core.step import Ctx, FitCtx, Step
from luthier.engine.chat import CHOICES, check_choice
from luthier.engine.encoding import chats, counted, encode, encode_tasks, subset

if TYPE_CHECKING:
    from luthier.engine.forward import Forward
    from luthier.engine.loop import Loop, Task
    from luthier.engine.models import Model
    from luthier.engine.rendering import Render
    from luthier.engine.validation import Validation

PROBE_ROWS = 4


class TaskSpec(BaseModel):
    """One task of a training."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    data: str = Field("examples.train", description="INPUT.SUBSET that is trained on")
    objective: Slot[Objective] = Field(named("supervised"), description="what is minimised")
    head: Slot[Head] | None = Field(None, description="the head of this task, for objectives on labels")
    weight: float = Field(1.0, gt=0, description="weight of this task's loss")

    @property
    def name(self) -> str:
        """The data's name stands for the task."""
        return self.data


class Length(BaseModel):
    """How long to train: epochs of the first task, or optimizer steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: float | None = Field(None, gt=0, description="passes over the rows of the first task")
    steps: int | None = Field(None, gt=0, description="optimizer steps")

    @model_validator(mode="after")
    def _one(self) -> Length:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self


class Fit(Step, name="fit"):
    """Train a base on one or several tasks with a method; leaves an adapter, a delta or a model."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "*": "examples|model|adapter|delta"}
    output: ClassVar[str] = "adapter|delta|model"
    tasks: tuple[TaskSpec, ...] = Field(named(({"data": "examples.train"},)), description="what is learned, from which data")
    method: Slot[Method] = Field(named("lora"), description="which weights move")
    regularizers: tuple[Slot[Regularizer], ...] = Field((), description="what is added to the objective")
    optimizer: Slot[Optimizer] = Field(named("adamw"), description="how gradients move weights")
    schedule: Slot[Schedule] = Field(named("linear"), description="how the learning rate changes")
    length: Length = Field(named({"epochs": 3}), description="{epochs: N} or {steps: N}")
    learning_rate: float | None = Field(None, gt=0, description="peak learning rate; the method's own when left out")
    batch_rows: int = Field(8, ge=1, description="rows of each task in one optimizer step")
    micro_rows: int | None = Field(None, ge=1, description="rows that go through the model at once; batch_rows if left out")
    micro_tokens: int | None = Field(None, ge=1, description="tokens that go through the model at once, about; 1024 on a "
                                                             "processor and 16384 on a GPU if left out")
    max_tokens_per_example: int = Field(512, ge=8, description="longest row in tokens; longer ones follow over_long")
    over_long: Literal["drop", "truncate", "split", "truncate-context"] = Field(
        "drop", description="long rows: drop; truncate texts with labels; split into rows that fit; or cut what is not "
                            "learned (truncate-context). A target is never cut")
    template: str = Field("auto", description="auto (the model's own for chats, else plain), plain, chat, or a Jinja file")
    new_tokens: tuple[str, ...] = Field((), description="strings that become one token each; only their rows are trained")
    clip: float = Field(1.0, ge=0, description="gradient norm above which gradients are scaled down; 0 = never")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="format of the weights while training")
    streams: dict[str, str] = Field({}, description="further data by name; `validation` gives a loss each epoch")
    roles: dict[str, str] = Field({}, description="further models an objective needs: role -> input; the base if left out")
    checkpoint_seconds: float = Field(30, ge=0, description="seconds between checkpoints; never changes a result")

    def check(self) -> None:
        """Refuse what no data can mend."""
        names = [t.data for t in self.tasks]
        if len(set(names)) < len(names):
            raise UserError(f"Two tasks train on the same data ({', '.join(names)}); give each its own subset.")
        if self.over_long == "truncate" and not all(t.head or t.objective.needs_head for t in self.tasks):
            raise UserError("over_long: truncate cuts texts for label tasks only; an answer is never cut. Use drop, split "
                            "or truncate-context.")
        check_choice(self.template)
        strange = [s for s in self.new_tokens if not s or self.new_tokens.count(s) > 1]
        if strange:
            raise UserError(f"new_tokens: {strange[0]!r} is {'given twice' if strange[0] else 'empty'}.")

    def content(self) -> dict[str, Any]:
        """Hash of a template that is a file."""
        return {} if self.template in CHOICES else {"template": hash_file(Path(self.template).expanduser())}

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Encode, train from the last checkpoint, save."""
        import torch

        from luthier.engine import new_tokens, weights
        from luthier.engine.memory import peak_mb, require_mb
        from luthier.engine.planning import foretold

        engine = ctx.engine
        engine.forget()
        planned = ctx.journal.do("plan", lambda: foretold(self, inputs, ctx))
        base = inputs["base"]
        dtype = engine.dtype(base, training=True) if self.dtype == "auto" else getattr(torch, self.dtype)
        # Decided once, before step 1: a resumed run must not measure again and decide otherwise.
        dtype = getattr(torch, ctx.journal.do("dtype", lambda: str(dtype).removeprefix("torch.")))
        model = engine.fresh(base, dtype)
        self._check_architecture(model)
        if self.new_tokens:
            model = new_tokens.extend(model, self.new_tokens)
        render = self._render(model, inputs)
        fit_ctx = FitCtx(**ctx.__dict__)
        fit_ctx.roles = self._roles(model, inputs, ctx)
        tasks, encoded = encode_tasks(self.tasks, model, render, inputs, ctx)
        model.module.train()
        torch.manual_seed(ctx.rng.key("prepare"))
        model = self.method.prepare(model, fit_ctx)
        for regularizer in self.regularizers:
            model = regularizer.prepare(model, fit_ctx)
        for task, spec in zip(tasks, self.tasks, strict=True):
            self._add_head(model, task, spec)
        new_tokens.train(model)
        trained = sum(p.numel() for p in _trained(model))
        if not trained:
            raise UserError(f"Method '{self.method.info.name}' trains nothing on {model.name}.")
        require_mb(trained * 16 / 1e6, f"Training {trained:,} weights")
        rate = self._learning_rate(model, len(tasks[0].rows))
        loop = self._loop(model, tasks, rate, fit_ctx, inputs, render)
        hooks = [part.start(model, fit_ctx) for part in (self.method, *self.regularizers)]
        loop.hooks = hooks
        ctx.log(f"{trained:,} of {model.parameters():,} weights, {loop.plan.steps} steps, {dtype}, "
                f"learning rate {rate.value:g} ({rate.source})")
        loop.train()
        for part, hook in zip((self.method, *self.regularizers), hooks, strict=True):
            part.finish(model, hook)
        new_tokens.settle(model)
        model.template = render.state()
        self._probe(model, tasks, ctx)
        write_lines(ctx.folder / "curve.jsonl", loop.curve)
        write_lines(ctx.folder / "ledger.jsonl", (entry for e in encoded.values() for entry in e.ledger))
        heads = {t.name: spec.head.to_dict() for t, spec in zip(tasks, self.tasks, strict=True) if spec.head}
        clock = loop.clock
        decisions = {**engine.decisions, "dtype": str(dtype).removeprefix("torch.")}
        write_json(ctx.folder / "cost.json", {"seconds": clock.seconds, "tokens": clock.tokens, "peak_mb": peak_mb()})
        artifact = weights.save(
            model, self.method.artifact, ctx.folder, heads,
            base={"name": base.meta["name"], "note": base.meta["note"], "identity": base.identity,
                  "step": base.folder.name},
            rows={name: e.used for name, e in encoded.items()}, **counted(encoded.values()),
            fit={"method": self.method.to_dict(), "trained_parameters": trained, "total_parameters": model.parameters(),
                 "seconds": round(clock.seconds, 2), "tokens": clock.tokens,
                 "tokens_per_second": round(clock.tokens / max(clock.seconds, 1e-9), 1),
                 "peak_mb": round(peak_mb()), "planned": planned, "steps": clock.steps, "epochs": clock.epoch,
                 "learning_rate": {"value": rate.value, "source": rate.source}, "decisions": decisions})
        return artifact

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Rows in = out + ledger; something is learned and the stop token is; saved = trained."""
        kept = ctx.journal.values["probe"]
        rows = sum(artifact.meta["rows"].values())
        found = [receipt("fit/rows", kept["rows_in"], rows + artifact.meta["dropped"], unit="rows",
                         detail="rows of the data against rows trained on plus ledger")]
        if kept["sequences"]:
            found.append(receipt("fit/learned tokens", 0, kept["empty"], unit="rows", detail="rows with nothing learned"))
        if kept["stops"] is not None:
            found.append(receipt("fit/stop token", 1.0, kept["stops"], unit="share",
                                 detail="share of probed rows whose last learned token ends generation"))
        else:
            found.append(not_applicable("fit/stop token", "nothing here learns to answer: labels, or texts to be read on"))
        found.append(self._packed_is_padded(kept["packed"], ctx.journal.values["dtype"]))
        found.append(self._saved_is_trained(inputs, artifact, ctx, kept))
        return found

    # --- parts of run ------------------------------------------------------------------------------------------

    def _render(self, model: Model, inputs: Mapping[str, Artifact]) -> Render:
        """The renderer of all tasks: a model has one template, that of conversations where any task has them."""
        from luthier.engine.rendering import renderer

        talks = any(chats(subset(inputs, task.data)) for task in self.tasks)
        return renderer(model, self.max_tokens_per_example, over_long=self.over_long, template=self.template, chats=talks)

    def _check_architecture(self, model: Model) -> None:
        for task in self.tasks:
            if model.architecture not in task.objective.architectures:
                raise UserError(
                    f"Objective '{task.objective.info.name}' needs {' or '.join(task.objective.architectures)}; "
                    f"{model.name} is an {model.architecture}.")

    def _roles(self, model: Model, inputs: Mapping[str, Artifact], ctx: Ctx) -> dict[str, Model]:
        wanted = {role for t in self.tasks for role in t.objective.roles}
        for role, name in self.roles.items():
            if role not in wanted:
                raise UserError(f"No objective reads the role '{role}'. {nearest(role, wanted)}")
            if name not in inputs:
                raise UserError(f"roles.{role}: there is no input '{name}'. {nearest(name, inputs)}")
        found = {}
        for role in sorted(wanted):
            source = inputs[self.roles.get(role, "base")]
            dtype = next(model.module.parameters()).dtype
            tuned = source if "base" in source.meta else None
            found[role] = ctx.engine.load(inputs["base"] if tuned else source, tuned, dtype)
        return found

    def _add_head(self, model: Model, task: Task, spec: TaskSpec) -> None:
        if task.objective.needs_head and spec.head is None:
            raise UserError(f"Objective '{task.objective.info.name}' needs a head: tasks: [{{data: {task.name}, "
                            f"objective: {task.objective.info.name}, head: linear}}].")
        if spec.head is not None:
            model.heads[task.name] = spec.head.build(model, model.labels.get(task.name, [])).to(model.device)

    def _learning_rate(self, model: Model, rows: int) -> Default:
        if self.learning_rate is not None:
            return Default(self.learning_rate, "asked for")
        return self.method.defaults(model, rows).get("learning_rate", Default(2e-4, "house default"))

    def _loop(self, model: Model, tasks: list[Task], rate: Default, ctx: FitCtx, inputs: Mapping[str, Artifact],
              render: Render) -> Loop:
        from luthier.engine import new_tokens
        from luthier.engine.forward import Forward
        from luthier.engine.loop import Loop, Plan

        per_epoch = math.ceil(len(tasks[0].rows) / self.batch_rows)
        steps = self.length.steps or max(1, round((self.length.epochs or 1) * per_epoch))
        tokens = self.micro_tokens or (1024 if model.device.type == "cpu" else 16384)
        plan = Plan(steps, self.batch_rows, self.micro_rows or self.batch_rows, rate.value, tokens, self.clip,
                    self.checkpoint_seconds)

        def groups() -> list[dict[str, Any]]:
            heads = [p for h in model.heads.values() for p in h.parameters()]
            made = [*self.method.parameter_groups(model), *([{"params": heads}] if heads else [])]
            held = {id(p) for group in made for p in group["params"]}
            rows = [p for p in new_tokens.train(model) if id(p) not in held]
            return [*made, *([{"params": rows}] if rows else [])]

        run = Forward({"policy": model, **ctx.roles})
        validation = self._validation(run, render, inputs, ctx)
        return Loop(run, tasks, plan, groups, self.optimizer, self.schedule, ctx, on_epoch=validation)

    def _validation(self, run: Forward, render: Render, inputs: Mapping[str, Artifact], ctx: Ctx) -> Validation | None:
        from luthier.engine.validation import Validation

        if "validation" not in self.streams:
            return None
        spec = self.tasks[0]
        data = encode(subset(inputs, self.streams["validation"]), spec.objective, render, ctx.rng)
        return Validation(run, spec.name, spec.objective, data, self.batch_rows) if data.rows else None

    def _probe(self, model: Model, tasks: list[Task], ctx: Ctx) -> None:
        """Keep what the receipts compare: counts, and the trained model's loss on a few rows."""
        probed = [f.get("input") for t in tasks for f in t.rows[:PROBE_ROWS]]
        sequences = [part for part in probed if isinstance(part, Tokens)]
        learned = [s for s in sequences if any(s.targets)]
        answers = [part for t in tasks if t.objective.learns_to_stop for f in t.rows[:PROBE_ROWS]
                   if isinstance(part := f.get("input"), Tokens) and any(part.targets)]
        stops = model.template.get("stop_ids", ())
        ends = [(s.decoder_ids or s.ids)[max(i for i, t in enumerate(s.targets) if t)] in stops for s in answers]
        # Rows are counted from the data again, not from the ledger: the receipt compares two ways of counting.
        ctx.journal.put("probe", {
            "rows_in": sum(len(list(ctx.stream(t.name))) for t in tasks),
            "sequences": bool(learned), "empty": len(sequences) - len(learned) if learned else 0,
            "stops": sum(ends) / len(ends) if ends else None, "losses": _losses(model, tasks),
            "packed": _packed_and_padded(model, tasks)})

    def _packed_is_padded(self, losses: list[float], dtype: str) -> Finding:
        """Rows in one pack see only themselves: their loss is that of each row alone, computed without packing."""
        if not losses:
            return not_applicable("fit/packed = unpacked", "this model's rows are padded, or its rows see each other")
        packed, alone = losses
        tolerance = 1e-5 if dtype == "float32" else 2e-2
        return receipt("fit/packed = unpacked", alone, packed, tolerance * max(1.0, abs(alone)), unit="nats",
                       detail=f"summed loss of {PROBE_ROWS} rows, each alone against all in one pack")

    def _saved_is_trained(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx, kept: Any) -> Finding:
        """Load what was saved and compare its losses with the trained model's on the same rows."""
        import torch

        from luthier.engine.models import add_tuned

        dtype = getattr(torch, ctx.journal.values["dtype"])
        model = add_tuned(ctx.engine.fresh(inputs["base"], dtype), open_artifact(artifact.folder))
        render = self._render(model, inputs)
        quiet = Ctx(**{**ctx.__dict__, "log": lambda text: None})
        tasks, _ = encode_tasks(self.tasks, model, render, inputs, quiet)
        again = _losses(model, tasks)
        worst = max(range(len(again)), key=lambda i: abs(again[i] - kept["losses"][i]))
        # Saving rounds float32 masters to the model's own format: that rounding is the only difference allowed.
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        return receipt("fit/saved = trained", kept["losses"][worst], again[worst],
                       tolerance * max(1.0, abs(kept["losses"][worst])), unit="nats",
                       detail=f"loss of the loaded {artifact.kind} on {PROBE_ROWS} rows against the trained model's")


def _trained(model: Model) -> list[Any]:
    modules = [model.module, *model.heads.values()]
    return [p for p in {id(p): p for m in modules for p in m.parameters()}.values() if p.requires_grad]


def _losses(model: Model, tasks: list[Task]) -> list[float]:
    """Mean loss of each probed row of each task, evaluation mode."""
    import torch

    run = _asking(model, tasks)
    found = []
    with torch.no_grad():
        for task in tasks:
            for i in range(min(PROBE_ROWS, len(task.rows))):
                total, count = _loss_of(run, task, slice(i, i + 1))
                found.append(total / max(count, 1))
    return found


def _packed_and_padded(model: Model, tasks: list[Task]) -> list[float]:
    """Summed loss of the probed rows in one pack and each alone without packing; nothing where rows aren't packed."""
    import torch

    run = _asking(model, tasks)
    alone = [t for t in tasks if "coupled" not in t.objective.parts.values()]
    if not run.packs["policy"] or not alone:
        return []
    with torch.no_grad():
        packed = sum(_loss_of(run, t, slice(0, PROBE_ROWS))[0] for t in alone)
        run.packs = dict.fromkeys(run.packs, False)
        padded = sum(_loss_of(run, t, slice(i, i + 1))[0] for t in alone for i in range(min(PROBE_ROWS, len(t.rows))))
    return [packed, padded]


def _asking(model: Model, tasks: list[Task]) -> Forward:
    from luthier.engine.forward import Forward

    for module in (model.module, *model.heads.values()):
        module.eval()
    return Forward({role: model for role in ("policy", *{r for t in tasks for r in t.objective.roles})})


def _loss_of(run: Forward, task: Task, rows: slice) -> tuple[float, float]:
    """Summed loss and count of some rows."""
    from luthier.engine.batches import collate

    model = run.models["policy"]
    run.task = task.name
    batch = collate(task.rows[rows], task.ids[rows], model.tokenizer.pad_token_id or 0, model.device)
    return (sum(float(p) for p in task.objective.loss(run, batch).values()), sum(task.objective.count(batch).values()))
