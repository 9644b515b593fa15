"""Fit: the training step."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from luthier.core.artifact import Artifact, open_artifact
from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.files import write_json, write_lines
from luthier.core.finding import Finding, not_applicable, receipt
from luthier.core.identity import hash_file
from luthier.core.kinds import Default, Method, Optimizer, Regularizer, Schedule, Tokens
from luthier.core.step import Ctx, FitCtx, Step
from luthier.engine.chat import CHOICES, check_choice
from luthier.engine.encoding import Encoded, chats, counted, encode, encode_tasks, further_rows, of_file, subset
from luthier.engine.steps._agreements import cached_is_computed, packed_is_padded
from luthier.engine.steps.specs import Length, TaskSpec, ValidationSpec

if TYPE_CHECKING:
    from luthier.engine.forward import Forward
    from luthier.engine.loop import Loop, Task
    from luthier.engine.models import Model
    from luthier.engine.rendering import Render
    from luthier.engine.turns import Turns
    from luthier.engine.validation import Metrics

CURVE = "curve.jsonl"  # grows while the step works, and is written whole when it ends


class Fit(Step, name="fit"):
    """Train a base on one or several tasks with a method; leaves an adapter, a delta or a model.

    With the input `begin`, an adapter of the same method, training goes on from that one.
    """

    inputs: ClassVar[dict[str, str]] = {
        "base": "model", "rate?": "records", "begin?": "adapter", "*": "examples|model|adapter|delta"}
    output: ClassVar[str] = "adapter|delta|model"
    distributed: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    # Whether the heads are what the model says; else they lie beside its weights for who asks for them.
    heads_answer: ClassVar[bool] = True
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
    cache_frozen: Literal["auto", "on", "off"] = Field(
        "auto", description="compute what lies below the lowest trained layer once and keep it on disk while training")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="format of the weights while training")
    sharding: Literal["none", "fsdp"] = Field("none", description="fsdp: ranks share the layers' weights (full fine-tuning "
                                                                  "under a launcher)")
    activation_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="compute activations again in the backward: less memory, about a third more work, the same "
                            "gradients; auto: where they would take more than half of the free memory")
    offload: Literal["none", "optimizer"] = Field("none", description="keep masters and optimizer states in the computer's "
                                                                      "memory, beside a GPU's")
    streams: dict[str, str] = Field({}, description="further data by name; `validation` gives a loss each epoch")
    validation: ValidationSpec = Field(named({}), description="when the validation stream is evaluated, early stopping, "
                                                              "and whether the best or the last weights are kept")
    roles: dict[str, str] = Field({}, description="further models an objective needs: role -> input; the base if left out")
    checkpoint_seconds: float = Field(30, ge=0, description="seconds between checkpoints; never changes a result")

    @field_validator("cache_frozen", "activation_checkpointing", mode="before")
    @classmethod
    def _on_is_yes(cls, value: Any) -> Any:
        """YAML reads a bare `on` or `off` as true or false."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    def check(self) -> None:
        """Refuse what no data can mend."""
        self.method.check()
        names = [t.name for t in self.tasks]
        if len(set(names)) < len(names):
            raise UserError(f"Two tasks train on the same data ({', '.join(names)}); give each its own subset.")
        if self.validation.acts and "validation" not in self.streams:
            raise UserError("validation needs rows to look at: streams: {validation: INPUT.SUBSET}, such as examples.dev.")
        if self.over_long == "truncate" and not all(t.head or t.objective.needs_head for t in self.tasks):
            raise UserError("over_long: truncate cuts texts for label tasks only; an answer is never cut. Use drop, split "
                            "or truncate-context.")
        if self.over_long in ("split", "truncate-context") and any(t.head or t.objective.needs_head for t in self.tasks):
            raise UserError(f"over_long: {self.over_long} is for rows with answers or raw texts; texts with labels take drop "
                            "or truncate.")
        if self.sharding == "fsdp" and (self.method.artifact != "model" or self.regularizers or self.new_tokens
                                        or self.offload != "none"):
            raise UserError("sharding: fsdp is for training that moves every weight, without regularizers, new tokens, offload "
                            f"(--method full); method '{self.method.info.name}' needs sharding: none.")
        check_choice(self.template)
        strange = [s for s in self.new_tokens if not s or self.new_tokens.count(s) > 1]
        if strange:
            raise UserError(f"new_tokens: {strange[0]!r} is {'given twice' if strange[0] else 'empty'}.")

    def content(self) -> dict[str, Any]:
        """Hashes of a template that is a file, and of files that method and regularizers read."""
        own = {} if self.template in CHOICES else {"template": hash_file(Path(self.template).expanduser())}
        return own | {part.info.name: found for part in (self.method, *self.regularizers) if (found := part.content())}

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Encode, train from the last checkpoint, save."""
        import torch

        from luthier.engine import distributed, fused, guards, new_tokens, rollouts, sharding
        from luthier.engine.frozen import Frozen
        from luthier.engine.memory import forget_peak, require_mb
        from luthier.engine.quantized import check_method
        from luthier.engine.roles import Roles
        from luthier.engine.step_plans import foretold
        from luthier.engine.thrift import check_offload, checkpointing, wants_checkpointing
        from luthier.engine.weights import go_on

        engine = ctx.engine
        engine.forget()
        forget_peak()
        ctx.journal.do("plan", lambda: foretold(self, inputs, ctx))
        base = inputs["base"]
        dtype = engine.dtype(base, training=True) if self.dtype == "auto" else getattr(torch, self.dtype)
        # Decided once, before step 1: a resumed run must not measure again and decide otherwise.
        dtype = getattr(torch, ctx.journal.do("dtype", lambda: str(dtype).removeprefix("torch.")))
        model = engine.fresh(base, dtype)
        self._check_architecture(model)
        check_offload(self.offload, model.device)
        check_method(base.meta.get("quantize", "none"), self.method.info.name, self.method.artifact)
        model = new_tokens.extend(model, self.new_tokens)
        render = self._render(model, inputs)
        fit_ctx = FitCtx(**ctx.__dict__, inputs=inputs)
        roles = Roles.named([t.objective for t in self.tasks], self.roles, inputs, engine)
        tasks, encoded = self._encoded(model, render, lambda: roles.before(model), inputs, ctx)
        held_out = self._held_out(render, lambda: roles.before(model), inputs, ctx)
        model.module.train()
        torch.manual_seed(ctx.rng.key("prepare"))
        model = self.method.prepare(model, fit_ctx)
        if "begin" in inputs:
            go_on(model, inputs["begin"])
        for regularizer in self.regularizers:
            model = regularizer.prepare(model, fit_ctx)
        for task, spec in zip(tasks, self.tasks, strict=True):
            self._add_head(model, task, spec)
        new_tokens.train(model)
        trained = sum(p.numel() for p in _trained(model))
        if not trained:
            raise UserError(f"Method '{self.method.info.name}' trains nothing on {model.name}.")
        require_mb(trained * 16 / 1e6, f"Training {trained:,} weights")
        if self.sharding == "fsdp":
            sharding.shard(model)
        rate = self._learning_rate(model, len(tasks[0].rows), inputs.get("rate"))
        objectives = [t.objective for t in tasks]
        fit_ctx.roles, bare = roles.live(objectives, model, self.method.artifact == "adapter")
        loop = self._loop(model, tasks, rate, fit_ctx, bare, held_out, self._metrics(render, inputs, fit_ctx))
        loop.further = further_rows((self.method, *self.regularizers), tasks[0], render, inputs, ctx)
        hooks = [part.start(model, fit_ctx) for part in (self.method, *self.regularizers)]
        loop.hooks = [*hooks, *rollouts.hooks(loop, [list(_examples(t, inputs)) for t in self.tasks], render)]
        loop.run.frozen = frozen = Frozen(loop.run, tasks, fit_ctx, self.cache_frozen,
                                          loop.plan.steps / loop.per_epoch, lambda: loop.hooks)
        ctx.log(f"{trained:,} of {model.parameters():,} weights, {loop.plan.steps} steps, {dtype}, "
                f"learning rate {rate.value:g} ({rate.source})")
        compiled = ctx.journal.do("compiled", lambda: not engine.exact and fused.pays(loop.scores()))
        with fused.compiled(compiled), checkpointing(model, ctx.journal.do(
                "activation_checkpointing",
                lambda: wants_checkpointing(self.activation_checkpointing, model, loop.plan.micro_tokens))):
            loop.train()
        loop.run.frozen = None
        frozen.close()
        for part, hook in zip((self.method, *self.regularizers), hooks, strict=True):
            part.finish(model, hook)
        if self.sharding == "fsdp":
            sharding.gather(model, engine.fresh(base, dtype))
        new_tokens.settle(model)
        if distributed.part():
            return base  # the first rank saves what all have trained
        model.template = render.state()
        self._probe(model, tasks, ctx)
        return self._save(model, loop, encoded, base, rate, ctx, {**frozen.record(), **guards.decisions(ctx.journal)})

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
        found.append(cached_is_computed(artifact.meta["fit"]["decisions"]["cache_frozen"]))
        found.append(packed_is_padded(kept["packed"], ctx.journal.values["dtype"]))
        found.append(self._saved_is_trained(inputs, artifact, ctx, kept))
        return found

    # --- parts of run ------------------------------------------------------------------------------------------

    def _render(self, model: Model, inputs: Mapping[str, Artifact]) -> Render:
        """The renderer of all tasks: a model has one template, that of conversations where any task has them."""
        from luthier.engine.rendering import renderer

        talks = any(chats(subset(inputs, name)) for task in self.tasks for name in task.sources)
        render = renderer(model, self.max_tokens_per_example, over_long=self.over_long, template=self.template, chats=talks,
                          routes=self.method.routes)
        if render.chat:
            model.tokenizer.chat_template = render.chat.jinja  # where the tokenizer is saved, other tools read it there
        return render

    def _check_architecture(self, model: Model) -> None:
        for task in self.tasks:
            if model.architecture not in task.objective.architectures:
                raise UserError(
                    f"Objective '{task.objective.info.name}' needs {' or '.join(task.objective.architectures)}; "
                    f"{model.name} is an {model.architecture}.")

    def _encoded(self, model: Model, render: Render, before: Callable[[], Forward], inputs: Mapping[str, Artifact],
                 ctx: Ctx) -> tuple[list[Task], dict[str, Encoded]]:
        """Every task with its rows, constants included; `before()` gives the roles as they are before training."""
        from luthier.engine.constants import with_constants

        tasks, encoded = encode_tasks(self.tasks, model, render, inputs, ctx)
        for task in tasks:
            task.rows = with_constants(task.rows, task.objective, before, ctx.journal, ctx.progress)
        return tasks, encoded

    def _held_out(self, render: Render, before: Callable[[], Forward], inputs: Mapping[str, Artifact], ctx: Ctx
                  ) -> Encoded | None:
        """The rows of the `validation` stream as the first task reads them."""
        from luthier.engine.constants import with_constants

        if "validation" not in self.streams:
            return None
        objective = self.tasks[0].objective
        data = encode(subset(inputs, self.streams["validation"]), objective, render, ctx.rng)
        data.rows = with_constants(data.rows, objective, before, ctx.journal, ctx.progress)
        if not data.rows and self.validation.acts:
            why = data.ledger[0]["detail"] if data.ledger else "it is empty"
            raise UserError(f"No row of streams.validation ({self.streams['validation']}) can be evaluated: {why}.")
        return data if data.rows else None

    def _metrics(self, render: Render, inputs: Mapping[str, Artifact], ctx: FitCtx) -> Metrics | None:
        from luthier.engine.validation import Metrics

        if not self.validation.metrics:
            return None
        return Metrics(self.validation, list(subset(inputs, self.streams["validation"])), render, ctx)

    def _add_head(self, model: Model, task: Task, spec: TaskSpec) -> None:
        if task.objective.needs_head and spec.head is None:
            raise UserError(f"Objective '{task.objective.info.name}' needs a head: tasks: [{{data: {task.name}, "
                            f"objective: {task.objective.info.name}, head: linear}}].")
        if spec.head is not None:
            model.heads[task.name] = spec.head.build(model, model.labels.get(task.name, [])).to(model.device)

    def _learning_rate(self, model: Model, rows: int, chosen: Artifact | None) -> Default:
        """What a sweep chose, what the step says, or what the method recommends."""
        if chosen is not None:
            if self.learning_rate is not None:
                raise UserError(f"learning_rate = {self.learning_rate:g}, and the input 'rate' brings another one. "
                                "Leave out one of the two.")
            return Default(chosen.meta["learning_rate"], f"swept on dev, {len(chosen.meta['trials'])} trials")
        if self.learning_rate is not None:
            return Default(self.learning_rate, "asked for")
        return self.method.defaults(model, rows).get("learning_rate", Default(2e-4, "house default"))

    def _loop(self, model: Model, tasks: list[Task], rate: Default, ctx: FitCtx, bare: frozenset[str],
              held_out: Encoded | None, metrics: Metrics | None) -> Loop:
        from luthier.engine import guards, new_tokens
        from luthier.engine.forward import Forward
        from luthier.engine.loop import Loop, Plan
        from luthier.engine.validation import Validation

        steps = self.length.in_steps(self.per_epoch(tasks))
        # Decided once, as the dtype: another start may find more or less memory free.
        tokens = self.micro_tokens or ctx.journal.do("micro_tokens", lambda: guards.micro_tokens(model, ctx.engine.exact))
        plan = Plan(steps, self.batch_rows, self.micro_rows or self.batch_rows, rate.value, tokens, self.clip,
                    self.checkpoint_seconds, self.offload == "optimizer")

        def groups() -> list[dict[str, Any]]:
            heads = [p for h in model.heads.values() for p in h.parameters()]
            made = [*self.method.parameter_groups(model), *([{"params": heads}] if heads else [])]
            held = {id(p) for group in made for p in group["params"]}
            rows = [p for p in new_tokens.train(model) if id(p) not in held]
            return [*made, *([{"params": rows}] if rows else [])]

        run = Forward({"policy": model, **ctx.roles}, bare)
        validation = Validation(run, tasks[0].name, tasks[0].objective, held_out, self.batch_rows, self.validation,
                                metrics) if held_out else None
        return Loop(run, tasks, plan, groups, self.optimizer, self.schedule, ctx, validation=validation,
                    live=ctx.folder / CURVE, turns=self.turns(tasks, steps, ctx))

    def per_epoch(self, tasks: Sequence[Task]) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(len(tasks[0].rows) / self.batch_rows)

    def turns(self, tasks: Sequence[Task], steps: int, ctx: Ctx) -> Turns | None:
        """Which tasks a step takes; a batch of each where nothing is said."""
        return None

    def _save(self, model: Model, loop: Loop, encoded: Mapping[str, Encoded], base: Artifact, rate: Default, ctx: Ctx,
              found: Mapping[str, Any]) -> Artifact:
        """Curve, ledger and cost as files, and the artifact with the record of how it was made."""
        from luthier.engine import weights
        from luthier.engine.memory import peak_mb

        clock, kept = loop.clock, ctx.journal.values
        write_lines(ctx.folder / CURVE, loop.curve)
        write_lines(ctx.folder / "ledger.jsonl", (entry for e in encoded.values() for entry in e.ledger))
        write_json(ctx.folder / "cost.json", {"seconds": clock.seconds, "tokens": clock.tokens, "peak_mb": peak_mb()})
        heads, silent = ({t.name: spec.head.to_dict() for t, spec in zip(loop.tasks, self.tasks, strict=True)
                          if spec.head and (spec.head.answers and self.heads_answer) is answers} for answers in (True, False))
        mixtures = {t.name: t.mixture.report(clock.step * self.batch_rows) for t in loop.tasks if t.mixture}
        self.method.keep(model, ctx.folder)
        decisions = {**ctx.engine.decisions, **{n: kept[n] for n in ("dtype", "activation_checkpointing", "compiled")}, **found}
        return weights.save(
            model, self.method.artifact, ctx.folder, heads,
            base={"name": base.meta["name"], "note": base.meta["note"], "identity": base.identity,
                  "step": base.folder.name},
            rows={name: e.used for name, e in encoded.items()}, **counted(encoded.values()),
            **({"training_heads": silent} if silent else {}),
            fit={"method": self.method.to_dict(), "trained_parameters": sum(p.numel() for p in _trained(model)),
                 "total_parameters": model.parameters(),
                 "seconds": round(clock.seconds, 2), "tokens": clock.tokens,
                 "tokens_per_second": round(clock.tokens / max(clock.seconds, 1e-9), 1),
                 "peak_mb": round(peak_mb()), "planned": kept["plan"], "steps": clock.step, "epochs": clock.epoch,
                 "learning_rate": {"value": rate.value, "source": rate.source}, "decisions": decisions,
                 **({"mixtures": mixtures} if mixtures else {}),
                 **({"turns": loop.turns.report(clock.step)} if loop.turns else {}),
                 **({"validation": loop.validation.report()} if loop.validation else {})})

    def _probe(self, model: Model, tasks: list[Task], ctx: Ctx) -> None:
        """Keep what the receipts compare: counts, and the trained model's loss on a few rows."""
        from luthier.engine.probing import PROBE_ROWS, losses, packed_and_padded

        sequences = [p for t in tasks for row in t.rows[:PROBE_ROWS] for p in row.values() if isinstance(p, Tokens)]
        learned = [s for s in sequences if any(s.targets)]
        answers = [p for t in tasks if t.objective.learns_to_stop for row in t.rows[:PROBE_ROWS]
                   for p in row.values() if isinstance(p, Tokens) and any(p.targets) and "states" not in p.pieces]
        stops = model.template.get("stop_ids", ())
        ends = [(s.decoder_ids or s.ids)[max(i for i, t in enumerate(s.targets) if t)] in stops for s in answers]
        # Rows are counted from the data again, not from the ledger: the receipt compares two ways of counting.
        ctx.journal.put("probe", {
            "rows_in": sum(1 for spec in self.tasks for name in spec.sources
                           for _ in of_file(ctx.stream(name.partition(":")[0]), name)),
            "sequences": bool(learned), "empty": len(sequences) - len(learned) if learned else 0,
            "stops": sum(ends) / len(ends) if ends else None, "losses": losses(model, tasks),
            "packed": packed_and_padded(model, tasks)})

    def _saved_is_trained(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx, kept: Any) -> Finding:
        """Load what was saved and compare its losses with the trained model's on the same rows."""
        import torch

        from luthier.engine import weights
        from luthier.engine.models import add_tuned
        from luthier.engine.probing import PROBE_ROWS, losses
        from luthier.engine.roles import Roles

        gc.collect()  # the trained model hangs in circles; two of them need not lie in memory
        dtype = getattr(torch, ctx.journal.values["dtype"])
        model = add_tuned(ctx.engine.fresh(inputs["base"], dtype), open_artifact(artifact.folder))
        weights.load_heads(model, artifact, "training_heads")
        render = self._render(model, inputs)
        quiet = Ctx(**{**ctx.__dict__, "log": lambda text: None})
        roles = Roles.named([t.objective for t in self.tasks], self.roles, inputs, ctx.engine)
        tasks, _ = self._encoded(model, render, lambda: roles.before(ctx.engine.load(inputs["base"], dtype=dtype)),
                                 inputs, quiet)
        again = losses(model, tasks)
        worst = max(range(len(again)), key=lambda i: abs(again[i] - kept["losses"][i]))
        # Saving rounds float32 masters to the model's own format: that rounding is the only difference allowed.
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        return receipt("fit/saved = trained", kept["losses"][worst], again[worst],
                       tolerance * max(1.0, abs(kept["losses"][worst])), unit="nats",
                       detail=f"loss of the loaded {artifact.kind} on {PROBE_ROWS} rows against the trained model's")


def _examples(spec: TaskSpec, inputs: Mapping[str, Artifact]) -> Iterable[Any]:
    """The examples of an on-policy task; of others nothing is needed beyond their rows."""
    return (e for name in spec.sources for e in subset(inputs, name)) if spec.objective.on_policy else ()


def _trained(model: Model) -> list[Any]:
    modules = [model.module, *model.heads.values()]
    return [p for p in {id(p): p for m in modules for p in m.parameters()}.values() if p.requires_grad]
