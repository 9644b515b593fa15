"""Step: a piece of work from artifacts to one artifact, and the context it is handed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from luthier.core.artifact import Artifact
from luthier.core.component import Component
from luthier.core.files import Journal
from luthier.core.finding import Finding
from luthier.core.rng import Rng

if TYPE_CHECKING:
    from luthier.engine.checkpoints import Snapshot
    from luthier.engine.loop import Clock, Rows
    from luthier.engine.workshop import Engine


class Progress(Protocol):
    """Called with what is done and how much there is."""

    def __call__(self, done: int, total: int, unit: str = ..., **shown: float) -> None: ...


def silent(done: int, total: int, unit: str = "", **shown: float) -> None:
    """A progress that nobody watches."""


@dataclass
class Ctx:
    """What a step, a component or an audit is handed. The list of names is closed (a test holds it).

    rng: counter-based generators of this step. stream: named input data as an iterator. folder: private until the
    step commits. journal: results by key, kept through a kill. engine: the workshop (`generate`, `score`, `embed`,
    `fit`, `evaluate`). roles: further models by name. log: one line to the run's log. progress: done, total, unit.
    """

    rng: Rng
    folder: Path
    journal: Journal
    engine: Engine
    stream: Callable[[str], Iterable[Any]] = lambda name: ()
    roles: Mapping[str, Any] = field(default_factory=dict)
    log: Callable[[str], None] = lambda text: None
    progress: Progress = silent


@dataclass
class FitCtx(Ctx):
    """`Ctx` inside training.

    clock: step, tokens, epoch and planned length. snapshot: the whole training state, restored bit for bit.
    closure: loss and gradients of a batch, replayable. perturbed: weights moved within a `with` block.
    rebuild_optimizer: the only way to change what is trained. rows: those of the first task, to draw from. inputs: the
    artifacts that the training reads, by name.
    """

    clock: Clock | None = None
    snapshot: Callable[[], Snapshot] | None = None
    closure: Callable[..., dict[str, Any]] | None = None
    perturbed: Callable[..., Any] | None = None
    rebuild_optimizer: Callable[[bool], None] | None = None
    rows: Rows | None = None
    inputs: Mapping[str, Artifact] = field(default_factory=dict)


class Step(Component, kind="step"):
    """A piece of work. Its key is its identity, the seed and the identities of its inputs.

    `inputs` names what it reads and of which artifact kind; a name ending in `?` may be left out, the name `*`
    stands for any further inputs. `output` is the kind it leaves.
    """

    inputs: ClassVar[dict[str, str]] = {}
    output: ClassVar[str] = "records"
    seeded: ClassVar[bool] = True
    # Whether it trains: what comes of it, and of all that reads it, depends on the chance of one training.
    trains: ClassVar[bool] = False
    # Whether all ranks of a distributed run work on it; the others wait for the first one.
    distributed: ClassVar[bool] = False

    def check(self) -> None:
        """Look at what can be refused before anything runs. Raises UserError."""

    def content(self) -> dict[str, Any]:
        """Hashes of outside content that this step reads (files, packages); part of its key."""
        return {}

    def training(self) -> bool:
        """Whether it trains, by itself or by a component that it holds."""
        return type(self).trains

    @abstractmethod
    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Do the work in `ctx.folder` and return the artifact sealed there."""

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Findings from comparing things that must agree; `differs` stops the run."""
        return []
