"""Components that exist to prove the contracts: each uses one promise that a real technique will lean on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Example
from luthier.core.kinds import Features, Hook, Method, Metric, Objective, Prediction, Regularizer, Tokens
from luthier.core.step import Ctx, FitCtx, Step

SUPERVISED_PARTS: Mapping[str, Literal["additive", "coupled"]] = {"nll": "additive", "kl": "additive"}


class Killed(Exception):
    """Stands for whatever ends a training half-way."""


# --- hooks ---------------------------------------------------------------------------------------------------------

class MemoryHook(Hook):
    """Keeps a running vector and a counter; both change the loss, so losing either shows in every later number."""

    def __init__(self, model: Any, report: str, pause: float) -> None:
        self.weights = [p for p in model.module.parameters() if p.requires_grad][:2]
        self.memory = torch.zeros(self.weights[0].numel())
        self.count = 0
        self.report, self.pause = report, pause

    def on_loss(self, run: Any, batch: Any, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pull = (self.weights[0].flatten() * self.memory).sum() + 1e-3 * self.count * self.weights[1].square().sum()
        return {**parts, "memory": pull}

    def on_step(self) -> None:
        self.count += 1
        self.memory = 0.9 * self.memory + 0.1 * self.weights[0].detach().flatten()
        if self.report:
            with Path(self.report).open("a") as file:
                file.write("step\n")
            time.sleep(self.pause)

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory, self.count = state["memory"].clone(), state["count"]


class DummyMemory(Regularizer, name="dummy-memory"):
    """A regularizer with a state."""

    report: str = Field("", description="file that gets one line a step")
    pause: float = Field(0.0, description="seconds to wait after a step, so that a kill can land anywhere")

    def start(self, model: Any, ctx: FitCtx) -> Hook:
        return MemoryHook(model, self.report, self.pause)


class StopHook(Hook):
    """Ends the training before its time, once."""

    def __init__(self, at: int, marker: Path) -> None:
        self.at, self.marker, self.seen = at, marker, 0

    def on_gradients(self) -> None:
        if self.seen == self.at and not self.marker.exists():
            self.marker.touch()
            raise Killed
        self.seen += 1

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class DummyStop(Regularizer, name="dummy-stop"):
    """Raises at one step of the first attempt."""

    at: int = Field(3, description="step at which training ends")

    def start(self, model: Any, ctx: FitCtx) -> Hook:
        return StopHook(self.at, ctx.folder / "stopped-once")


SPIED: dict[str, Any] = {}


class SpyHook(Hook):
    """Writes down the largest gradient of each trained weight and what came before."""

    def __init__(self, model: Any, ctx: FitCtx) -> None:
        self.before = {n: p.detach().clone() for n, p in named(model)}
        self.trained = {n for n, p in named(model) if p.requires_grad}
        self.largest = dict.fromkeys(self.trained, 0.0)
        self.model, self.ctx = model, ctx

    def on_gradients(self) -> None:
        for name, parameter in named(self.model):
            if parameter.grad is not None:
                self.largest[name] = max(self.largest.get(name, 0.0), float(parameter.grad.abs().max()))


def named(model: Any) -> list[tuple[str, nn.Parameter]]:
    """Every weight of a model and its heads, by name."""
    return [(f"{prefix}{n}", p) for prefix, m in [("", model.module), *((f"{t}:", h) for t, h in model.heads.items())]
            for n, p in m.named_parameters()]


class DummySpy(Regularizer, name="dummy-spy"):
    """Sees what moved; changes nothing."""

    def start(self, model: Any, ctx: FitCtx) -> Hook:
        return SpyHook(model, ctx)

    def finish(self, model: Any, hook: Hook) -> None:
        from tests.contracts.workbench import tuned_logits

        assert isinstance(hook, SpyHook)
        now = dict(named(model))
        # Of a method that cuts the model, what has another shape, or is gone, can't be compared.
        cut = {n for n, was in hook.before.items() if n not in now or now[n].shape != was.shape}
        moved = {n for n, p in now.items() if n in hook.before.keys() - cut and not torch.equal(p, hook.before[n])}
        SPIED.clear()
        SPIED.update(cut=cut, trained=hook.trained, largest=hook.largest, moved=moved, roles=hook.ctx.roles,
                     chosen=set(model.sparse.entries),
                     logits=tuned_logits(model))


class ProbeHook(Hook):
    """Calls one function inside a real training, at one step, with the gradients of that step at hand."""

    call: ClassVar[Callable[[Any, FitCtx], None]]

    def __init__(self, model: Any, ctx: FitCtx, at: int) -> None:
        self.model, self.ctx, self.at, self.batches = model, ctx, at, []

    def on_batch(self, batch: Any) -> list[Any]:
        self.batch = batch
        return [batch]

    def on_step(self) -> None:
        if self.ctx.clock.step + 1 == self.at:
            DummyProbe.call(self, self.ctx)


class DummyProbe(Regularizer, name="dummy-probe"):
    """Lets a test look at the training context where techniques see it."""

    call: ClassVar[Callable[[Any, FitCtx], None]] = lambda hook, ctx: None
    at: int = Field(2, description="step after whose update the test is called")

    def start(self, model: Any, ctx: FitCtx) -> Hook:
        return ProbeHook(model, ctx, self.at)


class HalvesHook(Hook):
    """Each batch as two: the rows themselves, and the same rows again."""

    def on_batch(self, batch: Any) -> list[Any]:
        return [batch, dict(batch)]


class DummyTwice(Regularizer, name="dummy-twice"):
    """Several batches instead of one."""

    def start(self, model: Any, ctx: FitCtx) -> Hook:
        return HalvesHook()


class ReplaceHook(Hook):
    """One new batch instead of one: equal in its numbers, another object."""

    def on_batch(self, batch: Any) -> list[Any]:
        from dataclasses import replace

        return [{**batch, "input": replace(batch["input"], ids=batch["input"].ids.clone())}]


class DummyReplace(Regularizer, name="dummy-replace"):
    """Another batch instead of the one given."""

    def start(self, model: Any, ctx: FitCtx) -> Hook:
        return ReplaceHook()


class PoisonHook(Hook):
    """A loss that is not a number from one step on."""

    def __init__(self, ctx: FitCtx, at: int) -> None:
        self.ctx, self.at = ctx, at

    def on_loss(self, run: Any, batch: Any, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: p * float("nan") if self.ctx.clock.step >= self.at else p for n, p in parts.items()}


class DummyPoison(Regularizer, name="dummy-poison"):
    """Breaks the loss at a step."""

    at: int = Field(2, description="steps that go well")

    def start(self, model: Any, ctx: FitCtx) -> Hook:
        return PoisonHook(ctx, self.at)


class ThawHook(Hook):
    """Changes half-way which weights are trained: the first half gives way to the second."""

    def __init__(self, model: Any, ctx: FitCtx, at: int) -> None:
        self.model, self.ctx, self.at = model, ctx, at

    def on_step(self) -> None:
        if self.ctx.clock.step + 1 == self.at:
            for name, parameter in self.model.module.named_parameters():
                parameter.requires_grad_("layers.1" in name)
            self.ctx.rebuild_optimizer(True)


class DummyThaw(Method, name="dummy-thaw"):
    """Trains both layers, then only the second."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "model"
    at: int = Field(2, description="steps with both layers")

    def prepare(self, model: Any, ctx: FitCtx) -> Any:
        for name, parameter in model.module.named_parameters():
            parameter.requires_grad_("layers." in name)
        return model

    def start(self, model: Any, ctx: FitCtx) -> Hook:
        return ThawHook(model, ctx, self.at)


# --- objectives ----------------------------------------------------------------------------------------------------

class DummyAnchored(Objective, name="dummy-anchored"):
    """Learn the answers and stay near a frozen reference."""

    roles: ClassVar[tuple[str, ...]] = ("reference",)
    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = SUPERVISED_PARTS
    weight: float = Field(0.5, ge=0, description="weight of the divergence")

    def encode(self, example: Example, render: Any, rng: Any) -> Features:
        return {"input": render.tokens(example)}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"nll": batch["input"].learned, "kl": batch["input"].learned}

    def loss(self, run: Any, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        policy = run("policy", batch["input"])
        return {"nll": policy.nll().sum(), "kl": policy.kl(run("reference", batch["input"])).sum()}

    def coefficients(self) -> dict[str, float]:
        return {"kl": self.weight}


class DummyCoupled(Objective, name="dummy-coupled"):
    """Pushes the answers of a batch to the same likelihood: each row sees the others."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"pairs": "coupled"}

    def encode(self, example: Example, render: Any, rng: Any) -> Features:
        return {"input": render.tokens(example)}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"pairs": len(batch["ids"])}

    def loss(self, run: Any, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        nll = run("policy", batch["input"]).nll()
        return {"pairs": (nll - nll.mean()).square().sum()}


class DummyImage(Objective, name="dummy-image"):
    """Tell the label of a picture: the mean of its pixels, through a model that sees."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"nll": "additive"}
    architectures: ClassVar[tuple[Any, ...]] = ("encoder",)
    needs_head: ClassVar[bool] = True

    def encode(self, example: Example, render: Any, rng: Any) -> Features:
        picture = next(p.value for t in example.turns for p in t.parts if p.type == "image")
        tokens = render.text(example)
        return {"input": Tokens(tokens.ids, tokens.targets, tensors={"pixel_values": picture}),
                "label": render.label_id(example.label)}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"nll": len(batch["label"])}

    def loss(self, run: Any, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        scores = run.head(run("policy", batch["input"]).pooled())
        return {"nll": nn.functional.cross_entropy(scores, batch["label"], reduction="sum")}


class Seeing(nn.Module):
    """Embeds tokens and adds the projected picture to each: the smallest model with two modalities."""

    def __init__(self, vocabulary: int, pixels: int, width: int = 16) -> None:
        super().__init__()
        self.words, self.eye = nn.Embedding(vocabulary, width), nn.Linear(pixels, width)
        self.config = SimpleNamespace(hidden_size=width, vocab_size=vocabulary)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor) -> Any:
        seen = self.eye(pixel_values.float().flatten(1))[:, None]
        return SimpleNamespace(last_hidden_state=torch.tanh(self.words(input_ids) + seen))


# --- metrics, steps ------------------------------------------------------------------------------------------------

class DummyJudged(Metric, name="dummy-judged"):
    """How likely a judge finds each answer: log-probability per token."""

    roles: ClassVar[tuple[str, ...]] = ("judge",)
    unit: ClassVar[str] = "nats a token"

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        from luthier.engine.rendering import renderer

        judge = ctx.roles["judge"]
        render = renderer(judge, 256)
        pairs = [(render.prompt(e), render.encode(p.text)) for e, p in zip(examples, predictions, strict=True)]
        return [{"id": e.id, "value": total / count} for e, (total, count)
                in zip(examples, ctx.engine.score(judge, pairs), strict=True)]


class DummyGrow(Step, name="dummy-grow"):
    """Adds a row to the rows it reads; fails once where it is told to."""

    inputs: ClassVar[dict[str, str]] = {"rows": "examples"}
    output: ClassVar[str] = "examples"
    ledger: str = Field(description="file that gets one line a call")
    fail_at: int = Field(0, description="call that fails; 0 = none")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        with Path(self.ledger).open("a") as file:
            file.write("call\n")
        if len(Path(self.ledger).read_text().splitlines()) == self.fail_at:
            raise Killed
        old = list(inputs["rows"].examples())
        return write_examples(ctx.folder, {"": [*old, Example(f"{len(old)}-{ctx.rng.key('row') % 1000}")]})


class DummyRows(Step, name="dummy-rows"):
    """Leaves as many rows as it is told; `note` and an outside file are part of what it is."""

    output: ClassVar[str] = "examples"
    count: int = Field(2, ge=0, description="how many rows")
    file: str = Field("", description="outside file that this step depends on")
    fails: str = Field("", description="a file; while it exists the step fails")
    differs: bool = Field(False, description="leave two things that must agree but differ")
    dies: bool = Field(False, description="its process is killed")
    seconds: float = Field(0, description="how long the work takes, unless a file `go` is there")

    def content(self) -> dict[str, Any]:
        return {"file": Path(self.file).read_text()} if self.file else {}

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        calls = ctx.folder.parent.parent / "calls.txt"
        with calls.open("a") as file:
            file.write(f"{ctx.folder.name}\n")
        ctx.journal.do("first half", lambda: os.getpid())
        if self.fails and Path(self.fails).exists():
            raise Killed("told to fail")
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        if not (ctx.folder / "go").exists():
            time.sleep(self.seconds)
        (ctx.folder / "go").unlink(missing_ok=True)
        ctx.log(f"{self.count} rows")
        ctx.progress(self.count, self.count, "rows")
        return write_examples(ctx.folder, {"": self._rows()})

    def _rows(self) -> Iterator[Example]:
        return (Example(f"row{i}") for i in range(self.count))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Any]:
        from luthier.core.finding import receipt

        return [receipt("dummy/rows", self.count, artifact.meta["rows"][""] + self.differs, unit="rows")]


class DummyCopy(Step, name="dummy-copy"):
    """Reads examples and leaves them again."""

    inputs: ClassVar[dict[str, str]] = {"rows": "examples", "more?": "examples"}
    output: ClassVar[str] = "examples"

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        with (ctx.folder.parent.parent / "calls.txt").open("a") as file:
            file.write(f"{ctx.folder.name}\n")
        return write_examples(ctx.folder, {"": inputs["rows"].examples()})
