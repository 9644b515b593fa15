"""The kinds of components and their contracts. A technique derives from one of these and is one file.

Tensors are torch tensors; torch itself is imported by the files that compute, never here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact
from luthier.core.component import Component
from luthier.core.example import Dropped, Example, Passage
from luthier.core.finding import Finding
from luthier.core.rng import Rng
from luthier.core.step import Ctx, FitCtx, Step
from luthier.core.study import Choice, Claim, Guard, Paper, Scale, Trend

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.models import Model
    from luthier.engine.rendering import Render
    from luthier.engine.subjects import Subject
    from luthier.engine.tensors import Spec

__all__ = [
    "Audit", "Body", "DataStep", "Decoder", "Environment", "Features", "Head", "Hook", "Method", "Metric",
    "Objective", "Optimizer", "Prediction", "Regularizer", "Retriever", "Schedule", "Step", "Study", "Tokens",
    "WeightRule",
]

Architecture = Literal["encoder", "decoder", "encoder-decoder"]


@dataclass(frozen=True)
class Tokens:
    """One sequence for a model: token ids, which of them are learned, and tensors of other modalities.

    `ids` and `targets` have one entry a token; with `decoder_ids` (encoder-decoder) the targets belong to those.
    `tensors` are arrays without a batch dimension, named as the model's forward names them (`pixel_values`).
    """

    ids: list[int]
    targets: list[bool]
    decoder_ids: list[int] | None = None
    tensors: Mapping[str, Any] = field(default_factory=dict)


# What an objective makes of one example: named sequences, plain numbers, and lists of numbers of any length.
Features = dict[str, "Tokens | float | int | tuple[int, ...]"]


@dataclass(frozen=True)
class Prediction:
    """What a model said to one example: `text`, or a `label` with the probabilities of all labels.

    `stopped` says that the model ended by itself; `passages` are the ids that were found for it, best first, `shown` the
    texts of those that stood in its prompt. `citations` are the ids it cites; a number that no shown passage has is kept as
    it was written, such as `[9]`.
    """

    id: str
    text: str = ""
    label: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    stopped: bool = True
    tokens: int = 0
    passages: tuple[str, ...] = ()
    log_probability: float | None = None
    shown: tuple[str, ...] = ()
    citations: tuple[str, ...] = ()


class DataStep(Component, kind="data_step"):
    """Sources, synthesis, curation, selection and augmentation: rows in, rows and dropped rows out, streaming."""

    roles: ClassVar[tuple[str, ...]] = ()
    # What it gives of rows of the type it reads: the same ones (some dropped), more of them, or others made from them.
    gives: ClassVar[Literal["same", "more", "other"]] = "same"

    @abstractmethod
    def apply(self, rows: Iterator[Any], ctx: Ctx) -> Iterator[Any]:
        """Yields rows (`Example`, `Passage` or a document) and `Dropped` for those left out, with the reason."""


class Objective(Component, kind="objective"):
    """What is minimised: the sum over parts of coefficient x sum / count.

    `roles` names further models (reference, teacher); `parts` says which of its parts promise that one batch of N
    and N batches of one give the same gradient (`additive`), and which don't (`coupled`).
    """

    roles: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {}
    architectures: ClassVar[tuple[Architecture, ...]] = ("decoder", "encoder-decoder")
    needs_head: ClassVar[bool] = False
    learns_to_stop: ClassVar[bool] = True  # every sequence it learns from ends with a token that stops generation

    @abstractmethod
    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        """Named sequences and numbers of one example. Raises `DroppedRow` when it can't be used."""

    def rows(self, example: Example, render: Render, rng: Rng) -> list[Features]:
        """The training rows of one example: mostly one, several where its template or `over_long` asks for it."""
        return [self.encode(piece, render, rng) for piece in render.pieces(example)]

    @abstractmethod
    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """How many units each part sums over, known before any forward."""

    @abstractmethod
    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Un-normalised sum of each part, scalars."""

    def represent(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What a coupled part sees of each row: tensors [rows, …], each row's of that row alone.

        An objective with this and `couple` trains on batches of any size: the engine computes them in micro-batches and
        caches gradients at them. One without keeps the rows of a batch together in the model.
        """
        raise NotImplementedError

    def couple(self, run: Forward, batch: Mapping[str, Any], seen: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What `loss` gives, from the representations of the whole batch."""
        raise NotImplementedError

    def coefficients(self) -> dict[str, float]:
        """Weight of each part; 1 where nothing is said."""
        return {}

    def constants(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Numbers [rows] that no training changes, such as what a frozen model says to a row.

        The engine asks once, before the first step and without gradients, and adds them to the features of the rows:
        `loss` finds them in the batch under their names. Any role but `policy` may be asked.
        """
        return {}

    def live_roles(self) -> tuple[str, ...]:
        """The roles that `loss` asks even where the constants are in the batch; other roles are not kept in memory."""
        return self.roles


class Hook:
    """What a method or regularizer may do while a model trains; override any of these, act nowhere else.

    `state_dict` is compulsory for a hook with state: tensors, numbers, strings, lists and dictionaries of them.
    """

    def on_batch(self, batch: Any) -> list[Any]:
        """The batches to train on instead of this one; under a launcher, of this rank's rows.

        When memory runs out a step begins again: a state must not change here or in `on_loss`.
        """
        return [batch]

    def on_loss(self, run: Forward, batch: Any, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parts of the loss, changed or with further ones.

        A part that the objective does not count belongs to the whole step, and is divided by its micro-batches.
        """
        return parts

    def on_gradients(self) -> None:
        """Once an optimizer step, after accumulation and reduction, before clipping."""

    def on_step(self) -> None:
        """After the optimizer has moved the weights."""

    def on_round(self) -> None:
        """At the end of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What must be kept for a resume to be exact."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


@dataclass(frozen=True)
class Default:
    """A value that a method recommends, and where the recommendation comes from."""

    value: Any
    source: str


class _Adapting(Component):
    """The lifecycle that methods and regularizers share."""

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        """Choose and create what is trained (wrap, freeze, parametrise). Raises UserError if nothing would train."""
        return model

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        """Called once before the first step."""
        return Hook()

    def finish(self, model: Model, hook: Hook) -> None:
        """Undo what only training needed; leave the form that is exported."""


class Method(_Adapting, kind="method"):
    """Which weights move, and in what form they are kept (`artifact`)."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "adapter"

    def parameter_groups(self, model: Model) -> list[dict[str, Any]]:
        """Optimizer groups: `params` and whatever the optimizer reads per group."""
        return [{"params": [p for p in model.module.parameters() if p.requires_grad]}]

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        """Recommended settings (`learning_rate`) with their source."""
        return {}

    def loadable(self) -> None:
        """Make known what loading its artifact needs, such as a tuner that PEFT does not have."""

    def expand(self, recipe: Any) -> Any:
        """The recipe that this one word stands for, when it is several steps."""
        return recipe


class Regularizer(_Adapting, kind="regularizer"):
    """Something added to training besides the objective; any number may be combined."""


class WeightRule(Component, kind="weight_rule"):
    """A rule from several sets of weights to one, run group by group by `engine/weight_executor.py`.

    `takes_base`: the base's weights come first, before those of the models. `models`: the fewest and the most models beside
    it. `reads`: whole weights, or the tensors of adapters. `leaves`: a full model, an adapter, or a delta on the base.
    """

    takes_base: ClassVar[bool] = False
    models: ClassVar[tuple[int, int]] = (1, 1 << 16)

    @property
    def roles(self) -> tuple[str, ...]:
        """Loaded models that `statistics` asks: `base`, `model` (the first one that was named), `models` (a list of all).

        They must fit memory.
        """
        return ()

    @property
    def reads(self) -> Literal["weights", "adapter"]:
        """What the tensors are."""
        return "weights"

    @property
    def leaves(self) -> Literal["model", "adapter", "delta"]:
        """What is written."""
        return "adapter" if self.reads == "adapter" else "model"

    def check(self, models: int) -> None:
        """Look at what can be refused before any weights are read; `models` without the base. Raises UserError."""

    def content(self) -> dict[str, Any]:
        """Hashes of outside files that it reads."""
        return {}

    def statistics(self, ctx: Ctx) -> Any:
        """What must be known of all weights first, or nothing.

        `ctx.stream("weights")` gives (group, tensors of every model) for each group, one after the other.
        """
        return None

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """Which tensors must be seen together; one each by default."""
        return [[n] for n in names]

    def specs(self, group: Sequence[str], given: Mapping[str, Spec], stats: Any) -> dict[str, Spec]:
        """Types and shapes of what `apply` gives; `given` are those of the first model, which it keeps by default."""
        return {n: given[n] for n in group}

    @abstractmethod
    def apply(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any
              ) -> dict[str, torch.Tensor]:
        """The group's new tensors from those of every model: a pure function.

        The executor brings what comes back to the type that `specs` states.
        """

    def facts(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any) -> dict[str, Any]:
        """Numbers about a group that belong in the record of the merge; nothing by default."""
        return {}


class Decoder(Component, kind="decoder"):
    """How the next token is chosen from what the models say.

    `scores` serves every request in a batch; a decoder that must look ahead overrides `search` instead.
    """

    roles: ClassVar[tuple[str, ...]] = ()
    max_new_tokens: int = Field(32, ge=1, description="most tokens of an answer")

    @abstractmethod
    def scores(self, states: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[batch, vocabulary] scores from logits by role; the engine takes the highest."""

    def choose(self, scores: torch.Tensor, rngs: Sequence[Callable[[], float]]) -> torch.Tensor:
        """[batch] token ids; `rngs` give one uniform number per item, a function of item and position."""
        return scores.argmax(-1)


class Metric(Component, kind="metric"):
    """A number with its evidence: one record per example, reduced; rewards, filters and judges are metrics too.

    A metric that asks the model itself, by the role `policy`, says `needs_answers = False`: nothing is generated for it.
    """

    roles: ClassVar[tuple[str, ...]] = ()
    needs_answers: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = ""

    @abstractmethod
    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """One record per example with at least `id` and `value`; `value` None where the metric doesn't apply."""

    def reduce(self, records: Sequence[Mapping[str, Any]]) -> float:
        """One number from records; the mean of the values that apply, nan when there are none."""
        values = [r["value"] for r in records if r["value"] is not None]
        return sum(values) / len(values) if values else float("nan")

    def details(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Further numbers of the same records by name, such as recall at other depths; they are reported, not compared."""
        return {}


class Audit(Component, kind="audit"):
    """A look for damage in a run, a pair of models or data. It measures; one that `trains` does so to measure.

    `roles`: the models it asks, `before` (the base) and `after` (the tuned model); `subjects`: what it can look at (a run
    has training rows beside the pair). Its limits are fields of its own, named `max_…` or `min_…`. `mends`: components,
    as "kind name", that repair what it finds. `battery`: whether it belongs to those that run when none is named.
    """

    roles: ClassVar[tuple[str, ...]] = ("before", "after")
    subjects: ClassVar[tuple[Literal["run", "pair", "data"], ...]] = ("run", "pair")
    mends: ClassVar[tuple[str, ...]] = ()
    battery: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    hard: bool = Field(False, description="whether a broken limit ends the command with exit code 3")

    def check(self) -> None:
        """Look at what can be refused before any model is loaded (files, sizes). Raises UserError."""

    def content(self) -> dict[str, Any]:
        """Hashes of outside files that it reads; part of the key of its step."""
        return {}

    @abstractmethod
    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """What was found: findings made by `core.finding.audited`, or `not_applicable` with the reason.

        Names are `audit/NAME/…`; the compared numbers stand in a file of `ctx.folder` that `evidence` names.
        """


class Head(Component, kind="head"):
    """A small module on top of a body: labels, scores, spans."""

    @abstractmethod
    def build(self, body: Model, labels: Sequence[str]) -> torch.nn.Module:
        """The module; it maps pooled features [batch, width] to [batch, labels]."""

    @abstractmethod
    def predict(self, outputs: torch.Tensor) -> torch.Tensor:
        """Probabilities [batch, labels] from the module's outputs."""


class Body(Component, kind="body"):
    """Names the sub-bodies of a model (vision, projector, language) and splits it at a layer."""

    @abstractmethod
    def parts(self, model: Model) -> dict[str, torch.nn.Module]:
        """Sub-modules by name."""

    @abstractmethod
    def split(self, model: Model, layer: int) -> tuple[torch.nn.Module, torch.nn.Module]:
        """What lies below `layer`, and the rest."""


class Optimizer(Component, kind="optimizer"):
    """How gradients move weights."""

    @abstractmethod
    def make(self, groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
        """The optimizer over parameter groups."""


class Schedule(Component, kind="schedule"):
    """How the learning rate changes over training."""

    @abstractmethod
    def factor(self, step: int, steps: int) -> float:
        """Multiplier of the learning rate at `step` (from 0) of `steps`."""


class Retriever(Component, kind="retriever"):
    """Finds the passages that answer a question."""

    roles: ClassVar[tuple[str, ...]] = ("encoder",)

    def searched(self, passage: Passage) -> str:
        """The text by which a passage is found."""
        return passage.shown

    @abstractmethod
    def index(self, passages: Iterable[Passage], ctx: Ctx) -> Artifact:
        """An `index` artifact in `ctx.folder`."""

    @abstractmethod
    def search(self, index: Artifact, queries: Sequence[str], k: int, ctx: Ctx) -> list[list[tuple[Passage, float]]]:
        """The `k` best passages of each query, best first, with scores that rank."""


class Environment(Component, kind="environment"):
    """A task that answers to actions."""

    @abstractmethod
    def reset(self, task: Any, rng: Rng) -> Any:
        """First observation of a task."""

    @abstractmethod
    def step(self, action: Any) -> tuple[Any, float, bool]:
        """Observation, reward, done."""


class Study(Component, kind="study"):
    """A published claim as an experiment: a recipe, its arms, and what is claimed of their records (`core/study.py`).

    `world` says where the evidence comes from: models and data made for studies ("synthetic world only"), or real ones.
    Judging is the runner's: no study can be lenient with itself.
    """

    paper: ClassVar[Paper]
    world: ClassVar[str] = "synthetic world only"
    scales: ClassVar[Mapping[str, Scale]]

    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """The recipe that all arms are edits of, as text, at the default scale."""

    @abstractmethod
    def arms(self) -> dict[str, dict[str, Any]]:
        """Recipe edits by arm; a mapping with `steps` is a whole recipe."""

    @abstractmethod
    def claims(self) -> tuple[Claim, ...]:
        """What is claimed; the main claims first."""

    def guards(self) -> tuple[Guard, ...]:
        """What must hold for the result to count."""
        return ()

    def choices(self) -> tuple[Choice, ...]:
        """Arms that stand for several; a later one may be near an earlier one."""
        return ()

    def trends(self) -> tuple[Trend, ...]:
        """Claims about all arms together."""
        return ()


class DroppedRow(Exception):
    """Raised by `Objective.encode` for an example that can't be used; the reason goes to the ledger."""

    def __init__(self, dropped: Dropped) -> None:
        super().__init__(dropped.reason)
        self.dropped = dropped
