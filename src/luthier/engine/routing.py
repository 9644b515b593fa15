"""Routing: which parts of a model each token, or each row, goes through.

A gate is a module with `routes`, the names of its parts, and `temperature`, by which it divides its logits when it
answers. In each forward it tells what it chose (`tell`), and whoever listens hears it: an objective that teaches gates,
a trace of an answer. Where nobody listens nothing is kept.

What chooses for a row as a whole is a module with `takes`, the entries that rows are given from outside (None: it
chooses itself), and `likeness(inputs)`, how near each row is to the key of its entry. It may read the rows of the forward
that is made (`read`), which say what is asked and what is to be answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.errors import UserError

if TYPE_CHECKING:
    from luthier.engine.batches import TokenBatch
    from luthier.engine.models import Model


@dataclass(frozen=True)
class Routed:
    """What one gate said of all tokens: logits [..., parts], the parts it chose [..., k] and their weights [..., k]."""

    logits: torch.Tensor
    chosen: torch.Tensor
    weights: torch.Tensor

    @property
    def shares(self) -> torch.Tensor:
        """[..., parts] weight of every part, 0 where it was not chosen."""
        return torch.zeros_like(self.logits).scatter(-1, self.chosen, self.weights.to(self.logits.dtype))

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Routed:
        """The same with each tensor changed."""
        return Routed(change(self.logits), change(self.chosen), change(self.weights))


_LISTENING: ContextVar[list[Routed] | None] = ContextVar("listening", default=None)


@contextmanager
def listening() -> Iterator[list[Routed]]:
    """Within this block the list gets what gates say, in the order in which the model asks them."""
    found: list[Routed] = []
    token = _LISTENING.set(found)
    try:
        yield found
    finally:
        _LISTENING.reset(token)


def tell(said: Routed) -> None:
    """Called by a gate in its forward."""
    listener = _LISTENING.get()
    if listener is not None:
        listener.append(said)


def gates(model: Model) -> list[Any]:
    """The gates of a model; none in most."""
    return [m for m in model.module.modules() if isinstance(getattr(m, "routes", None), tuple)]


def routes(model: Model) -> tuple[str, ...]:
    """Names of the parts that the gates choose from; empty where there are no gates."""
    found = gates(model)
    return tuple(found[0].routes) if found else ()


@contextmanager
def tempered(model: Model, temperature: float | None) -> Iterator[None]:
    """Within this block the gates divide their logits by `temperature` when they answer; None leaves them as they are.

    Raises:
        UserError: the model has no gates.
    """
    found = gates(model) if temperature is not None else []
    if temperature is not None and not found:
        raise UserError(f"gate_temperature = {temperature:g}: {model.name} has no gates. They come with methods that choose "
                        "among adapters, such as --method meteora.")
    kept = [gate.temperature for gate in found]
    try:
        for gate in found:
            gate.temperature = temperature
        yield
    finally:
        for gate, was in zip(found, kept, strict=True):
            gate.temperature = was


def heard(model: Model, ids: Sequence[int]) -> list[Routed]:
    """What each gate says of each token of a text, [tokens, ...].

    Raises:
        UserError: the model has no gates, or has two sides.
    """
    from luthier.core.kinds import Tokens
    from luthier.engine.batches import collate
    from luthier.engine.forward import Forward

    if not gates(model) or model.architecture == "encoder-decoder":
        why = "has no gates" if not gates(model) else "has two sides, whose tokens are not one text"
        raise UserError(f"There is nothing to trace: {model.name} {why}.")
    batch = collate([{"input": Tokens(list(ids), [False] * len(ids))}], ["traced"], model.tokenizer.pad_token_id or 0,
                    model.device)["input"]
    with torch.no_grad():
        said = Forward({"policy": model})("policy", batch, routes=True).routes()
    return [gate.map(lambda x: x[0]) for gate in said]


def trace(model: Model, ids: Sequence[int]) -> list[list[float]]:
    """[tokens][parts] the weight that each part has in each token of a text, mean over all gates."""
    mean: list[list[float]] = torch.stack([s.shares.float() for s in heard(model, ids)]).mean(0).tolist()
    return mean


def told(model: Model, ids: Sequence[int]) -> dict[str, Any]:
    """A trace for reading: `routes`, `tokens` as they read, and `weights` [tokens][parts], to three places."""
    return {"routes": list(routes(model)), "tokens": [model.tokenizer.decode([i]) for i in ids],
            "weights": [[round(w, 3) for w in row] for row in trace(model, ids)]}


_READING: ContextVar[TokenBatch | None] = ContextVar("reading", default=None)


@contextmanager
def reading(inputs: TokenBatch) -> Iterator[None]:
    """Within this block these are the rows that a model is asked for."""
    token = _READING.set(inputs)
    try:
        yield
    finally:
        _READING.reset(token)


def read() -> TokenBatch | None:
    """The rows of the forward that is made; None outside one of ours."""
    return _READING.get()


def chooser(model: Model) -> Any:
    """The module that chooses an entry for each row; None in most models."""
    return next((m for m in model.module.modules() if hasattr(m, "likeness")), None)


@contextmanager
def taking(model: Model, entries: int | Sequence[int] | None) -> Iterator[None]:
    """Within this block rows take this entry, or each its own; None lets them choose.

    Raises:
        UserError: the model has nothing to choose from.
    """
    found = chooser(model)
    if found is None:
        if entries is not None:
            raise UserError(f"{model.name} has no pool whose entries rows could take. It comes with --method l2m.")
        yield
        return
    was, found.takes = found.takes, entries
    try:
        yield
    finally:
        found.takes = was
