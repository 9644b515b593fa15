"""What lies below the lowest trained layer: nothing of it is recorded, and what it says to a row is computed once.

The hidden states that enter the lowest trained layer are a pure function of the row, as long as nothing below changes.
They are computed for every row before training, without gradients and without dropout, and kept in a mapped file
(`engine/activation_cache.py`); each forward of the training then runs the layers above only. Rows are known by their
token ids, so rows that something changed on the way, and rows that are not trained on, are computed whole.

Dropout below the lowest trained layer is off while states are kept: it regularises only what is trained.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from luthier.core.errors import UserError
from luthier.core.identity import digest
from luthier.core.kinds import Hook, Tokens
from luthier.engine.activation_cache import ActivationCache
from luthier.engine.batches import TokenBatch, by_length, collate, packs_of
from luthier.engine.layers import Skip, Stack, Unrecorded, evaluating, hidden_of, layer_stacks, standing_in

if TYPE_CHECKING:
    from luthier.core.step import Ctx
    from luthier.engine.forward import Forward, Output
    from luthier.engine.loop import Task
    from luthier.engine.models import Model

Mode = Literal["auto", "on", "off"]
# Below this share of frozen layers, keeping states saves less than it costs in files and care.
LEAST_SHARE = 0.25
# Rows and tokens that go through the lower layers at once, and rows that are sorted by length together.
GROUP_ROWS, GROUP_TOKENS, WINDOW_ROWS = 64, 2048, 256
PROOF_ROWS = 8
# States of one row, read and computed, come from the same operations: only the format's own rounding is allowed.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
SHORT_TOLERANCE = 1e-2


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
        self._cache: ActivationCache | None = None
        self._rows = _sequences(self.tasks)
        self._slots = {name: i for i, name in enumerate(self._rows)}
        self._stale, self._busy, self._first = True, False, True

    @property
    def model(self) -> Model:
        """The model being trained."""
        return self.run.models["policy"]

    # --- what the loop and the forward call ---------------------------------------------------------------------

    def changed(self) -> None:
        """What is trained has changed: look again before the next forward."""
        self._stale = True

    def ready(self) -> None:
        """Find the lowest trained layer, decide, and compute the states that are missing.

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
            kept = self.ctx.journal.do(f"frozen layers/{self._below}", lambda: asdict(self._decide(why)))
            self.decision = Decision(**kept)
            if self.decision.use:
                self._fill(self._open())
        first, self._first = self._first, False
        if self.mode == "on" and first and not self.decision.use:
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
        known = self._known(inputs, place, shape) if inputs is not None else None
        with ExitStack() as block:
            if known is not None:
                block.enter_context(evaluating(_all(stack.before)))
                block.enter_context(standing_in(stack, range(self._below), self._skip(lambda: known)))
            else:
                if self._cache is not None:
                    block.enter_context(evaluating(_all(stack.below(self._below))))
                if self._stops:
                    last = self._below - 1
                    block.enter_context(standing_in(stack, range(self._below), lambda m, i: Unrecorded(m, i == last)))
            yield

    def close(self, remove: bool = True) -> None:
        """Let go of the file; at the end of a training it is removed."""
        if self._cache is not None:
            self._cache.close(remove)
        self._cache = None

    def record(self) -> dict[str, Any]:
        """For the run's decisions."""
        return {"cache_frozen": {k: v for k, v in asdict(self.decision).items() if v is not None},
                **({"dropout_below": "off"} if self.decision.use else {})}

    # --- looking and deciding -----------------------------------------------------------------------------------

    def _look(self) -> str:
        """Set the stack, the layers below everything trained, and whether they must be kept from recording.

        Returns why nothing can be kept, or nothing.
        """
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
        if any(id(leaf) in trained for leaf in _leaves(entering)):
            return f"something trained acts below layer {below + 1}"
        self._below, self._stops = below, entering.requires_grad
        return "its layers answer with more than hidden states" if stack.answers == "more" else ""

    def _entering(self, stack: Stack, below: int) -> torch.Tensor:
        """Hidden states of a few tokens above the first `below` layers, with whatever autograd recorded of them."""
        caught: list[torch.Tensor] = []
        hook = stack.layers[below - 1].register_forward_hook(lambda m, a, answer: caught.append(hidden_of(answer)))
        ids = [i % int(self.model.module.config.vocab_size) for i in range(5, 11)]
        try:
            with torch.enable_grad():
                self._ask(self._batch([ids]), whole=True)
        finally:
            hook.remove()
        return caught[0]

    def _decide(self, why: str) -> Decision:
        stack = self._stack
        layers = len(stack.layers) if stack else 0
        why = why or ("it is off" if self.mode == "off" else "")
        why = why or ("" if self._rows else "no row is one sequence of tokens")
        if not why and self.mode == "auto":
            why = self._not_worth(layers)
        if why:
            return Decision(False, why, self._below, layers)
        try:
            cache = self._open()
        except OSError as error:
            return Decision(False, f"there is no room for the states: {error.strerror}", self._below, layers)
        megabytes = round(cache.bytes / 1e6, 1)
        distance, tolerance = self._prove(cache)
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
        needed, free = self._size() / 1e6, shutil.disk_usage(self.ctx.folder).free / 1e6
        return f"the states need {needed:,.0f} MB of {free:,.0f} MB free disk" if needed > free / 2 else ""

    def _say(self) -> None:
        d = self.decision
        if d.use:
            self.ctx.log(f"{d.below} of {d.layers} layers lie below everything trained: computed once ({d.megabytes:g} MB "
                         "on disk), without dropout")
        elif d.below:
            self.ctx.log(f"{d.below} of {d.layers} layers lie below everything trained and are computed in every epoch: "
                         f"{d.why}")

    # --- the file -----------------------------------------------------------------------------------------------

    def _size(self) -> int:
        tokens = sum(len(ids) for ids in self._rows.values())
        return tokens * self.model.width * _dtype(self.model).itemsize

    def _open(self) -> ActivationCache:
        """The file for these rows, this base, this layer and what stands below it; an older one of the same key."""
        if self._cache is None:
            assert self._stack is not None
            dtype = _dtype(self.model)
            key = digest({"base": self.model.base.identity, "frozen": _contents(self._stack, self._below),
                          "rows": hashlib.sha256(b"".join(self._rows)).hexdigest(), "dtype": str(dtype),
                          "stack": self._stack.name, "layer": self._below, "packed": self.run.packs["policy"],
                          "group": [GROUP_ROWS, GROUP_TOKENS, WINDOW_ROWS, PROOF_ROWS]})
            self._cache = ActivationCache(self.ctx.folder / "activations", key, [len(r) for r in self._rows.values()],
                                          self.model.width, dtype)
        return self._cache

    def _fill(self, cache: ActivationCache, most_groups: int | None = None) -> list[int]:
        """Compute the rows that are missing, always in the same groups: a row's states are the same after a kill.

        Returns the first group.
        """
        rows = list(self._rows.values())
        groups = list(self._groups([len(r) for r in rows]))
        for group in groups[:most_groups]:
            missing = set(cache.missing(group))
            if missing:
                for row, states in zip(group, self._compute([rows[r] for r in group]), strict=True):
                    if row in missing:
                        cache.write(row, states)
                self.ctx.progress(max(group) + 1, len(rows), "rows below the trained layers")
        cache.flush()
        return groups[0]

    def _groups(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Row numbers that are computed together: the rows of the proof, then windows cut like batches."""
        cut = packs_of if self.run.packs["policy"] else by_length
        starts = [0, *range(PROOF_ROWS, len(lengths), WINDOW_ROWS), len(lengths)]
        for begin, end in zip(starts, starts[1:], strict=False):
            for group in cut(lengths[begin:end], GROUP_ROWS, GROUP_TOKENS):
                yield [begin + place for place in group]

    def _compute(self, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """[tokens, width] of each row: what leaves the layers below."""
        stack, batch = self._stack, self._batch(rows)
        assert stack is not None
        caught: list[torch.Tensor] = []
        with ExitStack() as block:
            last = stack.layers[self._below - 1]
            block.callback(last.register_forward_hook(lambda m, a, answer: caught.append(hidden_of(answer))).remove)
            above = range(self._below, len(stack.layers))
            block.enter_context(standing_in(stack, above, self._skip(lambda: caught[0])))
            block.enter_context(torch.no_grad())
            output = self._ask(batch, whole=True)
        assert output.place is not None
        flat = caught[0].flatten(0, 1)[output.place[batch.mask.bool()]]
        return list(flat.split([len(r) for r in rows]))

    def _prove(self, cache: ActivationCache) -> tuple[float, float]:
        """How far the last hidden states of the first rows, from the file, are from the whole model's; and the most."""
        group = self._fill(cache, most_groups=1)
        rows = list(self._rows.values())
        batch = self._batch([rows[r] for r in group])
        real = batch.mask.bool()
        with torch.no_grad():
            whole, kept = (self._ask(batch, whole=way).states[real].float() for way in (True, False))
        tolerance = TOLERANCE.get(cache.dtype, SHORT_TOLERANCE)
        return float((whole - kept).norm() / whole.norm()), tolerance

    def _ask(self, batch: TokenBatch, whole: bool) -> Output:
        """The policy in evaluation mode, through all layers or as training asks it."""
        busy, self._busy = self._busy, whole
        try:
            with evaluating(self.model.module.modules()):
                return self.run("policy", batch)
        finally:
            self._busy = busy

    def _batch(self, rows: Sequence[Sequence[int]]) -> TokenBatch:
        features = [{"input": Tokens(list(ids), [False] * len(ids))} for ids in rows]
        batch = collate(features, [""] * len(rows), self.model.tokenizer.pad_token_id or 0, self.model.device)["input"]
        assert isinstance(batch, TokenBatch)
        return batch

    def _skip(self, known: Callable[[], torch.Tensor]) -> Callable[[nn.Module, int], nn.Module]:
        as_tuple = self._stack is not None and self._stack.answers == "tuple"
        return lambda layer, place: Skip(layer, known, as_tuple)

    def _known(self, inputs: TokenBatch, place: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
        """[*shape, width] states that enter the lowest trained layer, or None when a row has none."""
        if self._cache is None or inputs.decoder_ids is not None or inputs.tensors:
            return None
        ids, lengths = inputs.ids.cpu().numpy(), inputs.mask.sum(1).tolist()
        slots = [self._slots.get(_name(row[:n])) for row, n in zip(ids, lengths, strict=True)]
        found = [s for s in slots if s is not None]
        if len(found) < len(slots):
            return None
        states = self._cache.read(found).to(place.device)
        # Whoever asks for gradients of the embeddings (some ways of checkpointing need them) gets them here.
        return laid_out(states, place[inputs.mask.bool()], shape).requires_grad_(self._stops and torch.is_grad_enabled())


def laid_out(states: torch.Tensor, where: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """[*shape, width]: `states` [tokens, width] at the places `where` [tokens], zero elsewhere.

    Where rows share a place (a common beginning), the first row's states stand there, whatever the order of writing.
    """
    order = torch.arange(len(where), device=where.device)
    if len(where) == shape.numel() and torch.equal(where, order):
        return states.view(*shape, -1)
    first = torch.full((shape.numel(),), len(where), device=where.device).scatter_reduce_(0, where, order, "amin")
    return torch.cat([states, states.new_zeros(1, states.shape[1])]).index_select(0, first).view(*shape, -1)


def _sequences(tasks: Iterable[Task]) -> dict[bytes, list[int]]:
    """Every different sequence of one side and of nothing but tokens, in order of first use, by the name of its ids."""
    parts = (part for task in tasks for features in task.rows for part in features.values())
    return {_name(part.ids): part.ids for part in parts
            if isinstance(part, Tokens) and part.decoder_ids is None and not part.tensors}


def _name(ids: Any) -> bytes:
    """16 bytes that stand for these token ids."""
    return hashlib.blake2b(np.asarray(ids, np.int64).tobytes(), digest_size=16).digest()


def _contents(stack: Stack, below: int) -> str:
    """Hash of every number that the states depend on besides the tokens."""
    found = {id(t): t for m in stack.below(below) for t in (*m.parameters(), *m.buffers())}
    state = hashlib.blake2b(digest_size=16)
    for tensor in found.values():
        state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def _all(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """These modules with everything in them, each once."""
    return list(dict.fromkeys(m for module in modules for m in module.modules()))


def _dtype(model: Model) -> torch.dtype:
    dtype = next(model.module.parameters()).dtype
    assert isinstance(dtype, torch.dtype)
    return dtype


def _leaves(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that a gradient of this one would end at."""
    if tensor.grad_fn is None:
        yield tensor
        return
    todo, seen = [tensor.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        todo += [n for n, _ in node.next_functions]
