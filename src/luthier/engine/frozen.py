"""What lies below the lowest trained layer: nothing of it is recorded, and what it says to a row is computed once.

The hidden states that enter the lowest trained layer are a pure function of the row, as long as nothing below changes.
They are computed for every row before training, without gradients and without dropout, and kept in a mapped file
(`engine/kept_states.py`); each forward of the training then runs the layers above only. Rows are known by their
token ids, so rows that something changed on the way, and rows that are not trained on, are computed whole.

Dropout below the lowest trained layer is off while states are kept: it regularises only what is trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from luthier.core.errors import UserError
from luthier.core.kinds import Hook
from luthier.engine.batches import TokenBatch
from luthier.engine.kept_states import KeptStates, batch_of, sequences_of
from luthier.engine.layers import Stack, Unrecorded, evaluating, hidden_of, layer_stacks, standing_in

if TYPE_CHECKING:
    from luthier.core.step import Ctx
    from luthier.engine.forward import Forward
    from luthier.engine.loop import Task
    from luthier.engine.models import Model
    from luthier.engine.output import Output

Mode = Literal["auto", "on", "off"]
# Below this share of frozen layers, keeping states saves less than it costs in files and care.
LEAST_SHARE = 0.25
# States read and computed come from the same operations on the same rows and are equal where these always give the
# same; a few roundings of the format are allowed for.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}
SHORT_TOLERANCE = 4e-3


@dataclass
class Decision:
    """Whether states are kept, why (not), and what the proof on the first rows found."""

    use: bool
    why: str = ""
    below: int = 0
    layers: int = 0
    megabytes: float = 0.0
    distance: float | None = None
    tolerance: float | None = None


@dataclass
class Frozen:
    """The lower part of one training's policy.

    rows: the tasks whose rows are trained on. epochs: planned passes over them. hooks: asked for when it is decided.
    """

    run: Forward
    tasks: Sequence[Task]
    ctx: Ctx
    mode: Mode = "auto"
    epochs: float = 1.0
    hooks: Callable[[], Sequence[Hook]] = tuple
    decision: Decision = field(default_factory=lambda: Decision(False, "not looked at yet"))

    def __post_init__(self) -> None:
        self._stack: Stack | None = None
        self._below = 0
        self._stops = False
        self._kept: KeptStates | None = None
        self._stale, self._busy, self._looks = True, False, 0

    @property
    def model(self) -> Model:
        """The model being trained."""
        return self.run.models["policy"]

    @property
    def _folder(self) -> Path:
        return self.ctx.folder / "activations"

    @cached_property
    def _rows(self) -> dict[bytes, list[int]]:
        return sequences_of(self.tasks)

    # --- what the loop and the forward call ---------------------------------------------------------------------

    def changed(self) -> None:
        """What is trained has changed: look again before the next forward."""
        self._stale = True

    def ready(self, fill: bool = True) -> None:
        """Find the lowest trained layer, decide, and `fill`: compute the states that are missing.

        Raises:
            UserError: `on`, but states can't be kept here.
        """
        if not self._stale:
            return
        self._stale = False
        self.close(remove=False)
        self._below, self._stops = 0, False
        with torch.random.fork_rng(devices=[]):
            why = self._look()
            # Decided once: a resumed training must not decide otherwise.
            name = f"frozen layers/{self._below}"
            self.decision = Decision(**self.ctx.journal.do(name, lambda: asdict(self._decide(why))))
            if self.decision.use and fill:
                # Where several processes share a journal the first one computes, and the others wait for its word.
                self.ctx.journal.do(f"{name}/filled {self._looks}", lambda: len(self._open().fill()))
                self._open().fill()
        self._looks += 1
        if self.mode == "on" and self._looks == 1 and not self.decision.use:
            raise UserError(f"cache_frozen: on, but {self.decision.why}. Use cache_frozen: auto.")
        self._say()

    @contextmanager
    def around(self, inputs: TokenBatch | None, place: torch.Tensor, shape: torch.Size) -> Iterator[None]:
        """Within this block one forward of the trunk on `shape` [1 or rows, tokens] skips what is known.

        `place` [rows, longest] says where each token of `inputs` stands among all places of the forward, counted row
        by row. Without `inputs` (other embeddings, states of all layers) everything is computed.
        """
        if not self._busy:
            self.ready()
        stack = self._stack
        if self._busy or stack is None or not self._below:
            yield
            return
        known = self._kept.known(inputs, place, shape) if self._kept and inputs is not None else None
        with ExitStack() as block:
            if known is not None and self._kept:
                # Whoever asks for gradients of the embeddings (some ways of checkpointing need them) gets them here.
                given = known.requires_grad_(self._stops and torch.is_grad_enabled())
                block.enter_context(evaluating(_all(stack.before)))
                block.enter_context(standing_in(stack, range(self._below), self._kept.skip(lambda: given)))
            else:
                if self._kept:
                    block.enter_context(evaluating(_all(stack.below(self._below))))
                if self._stops:
                    last = self._below - 1
                    block.enter_context(standing_in(stack, range(self._below), lambda m, i: Unrecorded(m, i == last)))
            yield

    def close(self, remove: bool = True) -> None:
        """Let go of the file; at the end of a training it is removed."""
        if self._kept:
            self._kept.file.close()
        self._kept = None
        if remove:
            shutil.rmtree(self._folder, ignore_errors=True)

    def record(self) -> dict[str, Any]:
        """For the run's decisions."""
        return {"cache_frozen": {k: v for k, v in asdict(self.decision).items() if v is not None},
                **({"dropout_below": "off"} if self.decision.use else {})}

    # --- looking and deciding -----------------------------------------------------------------------------------

    def _look(self) -> str:
        """Set the stack, the layers below everything trained, and whether they must be kept from recording.

        Returns why nothing can be kept, or nothing.
        """
        if self.model.sounds:
            self._stack = None
            return "its rows are not tokens"
        stacks = layer_stacks(self.model)
        if len(stacks) != 1:
            self._stack = None
            return "the model has two stacks of layers" if stacks else "its layers are not called one after another"
        self._stack = stack = stacks[0]
        trained = {id(p) for p in self.model.module.parameters() if p.requires_grad}
        below = stack.lowest(trained)
        if not below:
            return "everything is trained, down to the first layer"
        if not self.run.splits["policy"]:
            return "its vocabulary head can't be split off"
        entering = self._entering(stack, below)
        if any(isinstance(leaf, nn.Parameter) for leaf in _leaves(entering)):
            return f"something trained acts below layer {below + 1}"
        self._below, self._stops = below, entering.requires_grad
        return "its layers answer with more than hidden states" if stack.answers == "more" else ""

    def _entering(self, stack: Stack, below: int) -> torch.Tensor:
        """Hidden states of a few tokens above the first `below` layers, with whatever autograd recorded of them."""
        caught: list[torch.Tensor] = []
        hook = stack.layers[below - 1].register_forward_hook(lambda m, a, answer: caught.append(hidden_of(answer)))
        ids = [i % self.model.vocabulary for i in range(5, 11)]
        try:
            with torch.enable_grad():
                self._ask(batch_of(self.model, [ids]))
        finally:
            hook.remove()
        return caught[0]

    def _decide(self, why: str) -> Decision:
        stack = self._stack
        layers = len(stack.layers) if stack else 0
        why = why or ("it is off" if self.mode == "off" else "")
        if not why and self.mode == "auto":
            why = self._not_worth(layers)
        why = why or ("" if self._rows else "no row is one sequence of tokens")
        if why:
            return Decision(False, why, self._below, layers)
        try:
            kept = self._open()
        except OSError as error:
            return Decision(False, f"there is no room for the states: {error.strerror}", self._below, layers)
        megabytes = round(kept.file.bytes / 1e6, 3)
        distance, tolerance = self._prove(kept)
        if not distance <= tolerance:
            self.close()
            why = f"states from the file give other results (by {distance:.1e}, at most {tolerance:.0e})"
        return Decision(not why, why, self._below, layers, megabytes, distance, tolerance)

    def _not_worth(self, layers: int) -> str:
        """Why it would not pay, or nothing."""
        assert self._stack is not None
        if self._below < LEAST_SHARE * layers:
            return f"only {self._below} of {layers} layers are frozen"
        if self.epochs <= 1:
            return "no row is seen twice"
        changing = [type(h).__name__ for h in self.hooks() if type(h).on_batch is not Hook.on_batch]
        if changing:
            return f"{changing[0]} may change the batches"
        heard = [m for m in _all(self._stack.below(self._below)) if m._forward_hooks or m._forward_pre_hooks]
        if heard:
            return f"something listens to the frozen {type(heard[0]).__name__}"
        size = next(self.model.module.parameters()).element_size() * self.model.width
        needed = size * sum(len(ids) for ids in self._rows.values()) / 1e6
        free = shutil.disk_usage(self.ctx.folder).free / 1e6
        return f"the states need {needed:,.0f} MB of {free:,.0f} MB free disk" if needed > free / 2 else ""

    def _say(self) -> None:
        d = self.decision
        if d.use:
            self.ctx.log(f"{d.below} of {d.layers} layers lie below everything trained: computed once ({d.megabytes:g} MB "
                         "on disk), without dropout")
        elif d.below:
            self.ctx.log(f"{d.below} of {d.layers} layers lie below everything trained and are computed in every epoch: "
                         f"{d.why}")

    def _open(self) -> KeptStates:
        if self._kept is None:
            assert self._stack is not None
            self._kept = KeptStates(self.model, self._stack, self._below, self._rows, self._ask,
                                    self.run.packs["policy"], self._folder, self.ctx.progress)
        return self._kept

    def _prove(self, kept: KeptStates) -> tuple[float, float]:
        """How far the last hidden states of the first rows, from the file, are from the whole model's; and the most."""
        batch = batch_of(self.model, kept.fill(most_groups=1))
        real = batch.mask.bool()
        with torch.no_grad():
            whole, other = (self._ask(batch, whole=way).states[real].float() for way in (True, False))
        tolerance = TOLERANCE.get(kept.file.dtype, SHORT_TOLERANCE)
        return float((whole - other).norm() / whole.norm()), tolerance

    def _ask(self, batch: TokenBatch, whole: bool = True) -> Output:
        """The policy in evaluation mode, through all layers or as training asks it."""
        busy, self._busy = self._busy, whole
        try:
            with evaluating(self.model.module.modules()):
                return self.run("policy", batch)
        finally:
            self._busy = busy


def _all(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """These modules with everything in them, each once."""
    return list(dict.fromkeys(m for module in modules for m in module.modules()))


def _leaves(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that a gradient of this one would end at."""
    if tensor.grad_fn is None:
        yield tensor
        return
    todo, seen = [tensor.grad_fn], {tensor.grad_fn}
    while todo:
        node = todo.pop()
        if hasattr(node, "variable"):
            yield node.variable
        for further, _ in node.next_functions:
            if further is not None and further not in seen:
                seen.add(further)
                todo.append(further)
