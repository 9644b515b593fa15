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
from luthier.core.example import Example, Passage
from luthier.core.finding import Finding
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.core.study import Choice, Claim, Guard, Paper, Scale, Trend
from luthier.core.training_kinds import (
    Architecture,
    Default,
    DroppedRow,
    Features,
    Hook,
    Method,
    Objective,
    Optimizer,
    Regularizer,
    Schedule,
    Tokens,
)

if TYPE_CHECKING:
    import torch

    from luthier.engine.lookout import Lookout
    from luthier.engine.models import Model
    from luthier.engine.subjects import Subject
    from luthier.engine.tensors import Spec

__all__ = [
    "Architecture", "Audit", "Body", "DataStep", "Decoder", "Default", "DroppedRow", "Environment", "Features", "Head", "Hook",
    "Method", "Metric", "Objective", "Optimizer", "Prediction", "Regularizer", "Retriever", "Schedule", "Step", "Study",
    "Tokens", "WeightRule",
]

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


class WeightRule(Component, kind="weight_rule"):
    """A rule from several sets of weights to one, run group by group by `engine/weight_executor.py`.

    `takes_base`: the base's weights come first, before those of the models. `models`: the fewest and the most models beside
    it. `reads`: whole weights, or the tensors of adapters. `leaves`: a full model, an adapter, or a delta on the base. `heads`:
    task heads are `merged` as any other tensors, `kept` where all models have the same (one model has; else they are refused),
    or `dropped`, which is said.
    """

    takes_base: ClassVar[bool] = False
    heads: ClassVar[Literal["merged", "kept", "dropped"]] = "kept"
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

    @property
    def forces(self) -> bool:
        """Whether models of different bases and tokenizers are merged where names and shapes allow it."""
        return False

    def check(self, models: int) -> None:
        """Look at what can be refused before any weights are read; `models` without the base. Raises UserError."""

    def content(self) -> dict[str, Any]:
        """Hashes of outside files that it reads."""
        return {}

    def statistics(self, ctx: Ctx) -> Any:
        """What must be known of all weights first, or nothing.

        `ctx.stream("weights")` gives (group, tensors of every model) for each group, one after the other;
        `ctx.stream("models/2")` gives (name, tensor) of the third model's whole weights, those of its heads as
        `heads/TASK.NAME`.
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

    def summary(self, stats: Any) -> dict[str, Any]:
        """What the record of the merge should say of it as a whole; nothing by default."""
        return {}

    def form(self, config: dict[str, Any], stats: Any) -> dict[str, Any]:
        """The configuration of the adapter that it leaves, from that of the first one (`adapter_config.json`)."""
        return config


class Decoder(Component, kind="decoder"):
    """How the next token is chosen from what the models say.

    `scores` serves every request in a batch; a decoder that must look ahead overrides `search`, and says so by `searches`.
    `models` names the further models that it asks.
    """

    max_new_tokens: int = Field(32, ge=1, description="most tokens of an answer")

    @property
    def roles(self) -> tuple[str, ...]:
        """The models that it asks beside `policy`."""
        return tuple(self.models())

    def models(self) -> dict[str, str]:
        """Role -> the input of a step, base or run that plays it."""
        return {}

    @property
    def searches(self) -> bool:
        """Whether answers come from `search`."""
        return False

    def check(self, models: Mapping[str, Model]) -> None:
        """Look at the models before anything is written. Raises UserError where they don't go together."""

    @abstractmethod
    def scores(self, states: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[batch, vocabulary] scores from logits by role; the engine takes the highest."""

    def search(self, look: Lookout, prompts: Sequence[Sequence[int]], rngs: Sequence[Rng]) -> list[list[int]]:
        """The answer (token ids) to each prompt, its end token included, of a decoder that `searches`.

        What is drawn for a prompt comes from its own generator.
        """
        raise NotImplementedError

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
    """A small module on top of a body: labels, scores, spans.

    What it `reads`: features [batch, width], the mean over all places; or the states [batch, places, width] and the mask
    [batch, places] of real ones, as `module(states, mask)`. `answers`: whether it is what the model says; one that does not is
    kept beside the weights for training alone.
    """

    reads: ClassVar[Literal["pooled", "states"]] = "pooled"
    answers: ClassVar[bool] = True

    @abstractmethod
    def build(self, body: Model, labels: Sequence[str]) -> torch.nn.Module:
        """The module; it maps what the head reads to [batch, labels], or [batch, places, labels] for a label a place."""

    @abstractmethod
    def predict(self, outputs: torch.Tensor) -> torch.Tensor:
        """Probabilities [batch, labels] from the module's outputs."""

    def label(self, probabilities: Mapping[str, float]) -> str:
        """The label that is said of a row with these probabilities."""
        return max(probabilities, key=probabilities.__getitem__)


class Body(Component, kind="body"):
    """Names the sub-bodies of a model (vision, projector, language) and splits it at a layer."""

    @abstractmethod
    def parts(self, model: Model) -> dict[str, torch.nn.Module]:
        """Sub-modules by name."""

    @abstractmethod
    def split(self, model: Model, layer: int) -> tuple[torch.nn.Module, torch.nn.Module]:
        """What lies below `layer`, and the rest."""


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
