"""The kinds that a training is made of: objective, method, regularizer, optimizer and schedule, and what passes between them.

They are read as `luthier.core.kinds`, with the others.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from luthier.core.component import Component
from luthier.core.example import Dropped, Example
from luthier.core.rng import Rng
from luthier.core.step import FitCtx

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.models import Model
    from luthier.engine.rendering import Render

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


class DroppedRow(Exception):
    """Raised by `Objective.encode` for an example that can't be used; the reason goes to the ledger."""

    def __init__(self, dropped: Dropped) -> None:
        super().__init__(dropped.reason)
        self.dropped = dropped


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

    def remarks(self, rows: Sequence[Features]) -> Iterable[str]:
        """What the log should say of all training rows together, such as that nothing can be told apart in them."""
        return ()

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

    def units(self, batch: Any) -> dict[str, float]:
        """How many units each part that `on_loss` adds sums over, as an objective's `count`."""
        return {}

    def on_loss(self, run: Forward, batch: Any, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parts of the loss, changed or with further ones.

        A part that nobody counts belongs to the whole step, and is divided by its micro-batches.
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

    def content(self) -> dict[str, Any]:
        """Hashes of outside files that it reads; part of the key of the training."""
        return {}

    def streams(self) -> dict[str, str]:
        """Further rows that it draws from: name -> INPUT.SUBSET. They come by `ctx.rows.of(name)`, as the first task reads
        its own."""
        return {}

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
