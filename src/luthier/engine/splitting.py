"""A model split between two parties: a customer who holds the text, and a vendor who holds most of the model.

The customer replaces token ids by others (`Privatizer`), computes the embedding and the first layers, and sends what comes out
of them as bytes: hidden states and the mask of real tokens, never an id. The vendor computes the rest. Where the labels stay
with the customer, the last states come back, and their gradient goes down again; else labels are sent along. `Wire` keeps
what crossed. A technique and an audit need both, and rooms do not import each other.

Both parties may sit in one process, or the vendor in another one behind an address (`far.Far`, `vendor.Vendor`).

Noise is a function of (seed, text): equal texts are replaced alike in training and in use, and a text that is sent again spends
no further privacy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load, save

from luthier.core.errors import UserError
from luthier.core.identity import digest
from luthier.core.rng import Rng
from luthier.engine.layers import Stack, hidden_of, layer_stacks

if TYPE_CHECKING:
    from luthier.core.kinds import Method
    from luthier.core.step import FitCtx
    from luthier.engine.far import Far
    from luthier.engine.models import Model

Payload = bytes  # by another name: a wire counts `bytes`
CHUNK = 1 << 26  # numbers of a table of distances at once


@dataclass
class Wire:
    """What crossed: direction, names, kinds, shapes and bytes of each message; `keep` holds on to the bytes themselves."""

    keep: bool = False
    messages: list[dict[str, Any]] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    most: int = 10_000  # messages that are told one by one; all are counted
    bytes: int = 0
    count: int = 0

    def send(self, direction: str, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Named tensors as the other side reads them from bytes."""
        return {name: t.to(tensors[name].device) for name, t in load(self.packed(direction, **tensors)).items()}

    def packed(self, direction: str, **tensors: torch.Tensor) -> Payload:
        """The bytes of a message that leaves."""
        payload = save({name: t.detach().contiguous().cpu() for name, t in tensors.items()})
        self._note(direction, payload, tensors)
        return payload

    def heard(self, direction: str, payload: Payload) -> dict[str, torch.Tensor]:
        """The tensors of a message that came."""
        tensors = load(payload)
        self._note(direction, payload, tensors)
        return tensors

    def _note(self, direction: str, payload: Payload, tensors: Mapping[str, torch.Tensor]) -> None:
        self.count, self.bytes = self.count + 1, self.bytes + len(payload)
        if len(self.messages) < self.most:
            self.messages.append({"direction": direction, "bytes": len(payload), "tensors": {
                n: [str(t.dtype).removeprefix("torch."), list(t.shape)] for n, t in tensors.items()}})
        if self.keep:
            self.payloads.append(payload)


class _Crossing(torch.autograd.Function):
    """A tensor that crosses as bytes; its gradient crosses back as bytes."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, wire: Wire, direction: str, back: str) -> torch.Tensor:
        ctx.wire, ctx.back = wire, back
        return wire.send(direction, states=states)["states"]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return ctx.wire.send(ctx.back, gradient=gradients[0])["gradient"], None, None, None


@dataclass
class Privatizer:
    """Token privatisation: x' = nearest token of phi(x) + z with p(z) ~ exp(-eta ||z||), d_chi-private in eta.

    table: phi [vocabulary, d]. special: ids that are never replaced and never produced. protected [vocabulary]: tokens whose
    noise is `eta_high`'s; infinite leaves them as they are. `rng` is drawn from by text alone.
    """

    table: torch.Tensor
    special: frozenset[int]
    eta: float
    rng: Rng
    protected: torch.Tensor | None = None
    eta_high: float = float("inf")
    _known: dict[tuple[int, ...], list[int]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.eta > 0:
            raise UserError(f"eta = {self.eta:g}: it must be above 0; smaller is more private.")
        self.legal = torch.tensor([i not in self.special for i in range(len(self.table))])

    def noise(self, ids: Sequence[int], round: int = 0) -> torch.Tensor:
        """[tokens, d] noise of one text: a radius of Gamma(d, 1 / eta) in a direction that is drawn fairly.

        Equal draws whatever is protected: only the scale of a token's noise depends on that.
        """
        draw = self.rng("noise", f"{round}/{digest(list(ids))}")
        d = self.table.shape[1]
        radius = torch.from_numpy(draw.standard_gamma(d, size=len(ids)))
        return radius[:, None] / self._etas(ids)[:, None] * directions(draw, len(ids), d)

    def transform(self, ids: Sequence[int], round: int = 0) -> list[int]:
        """The ids that stand in the place of a text's; `round` draws anew."""
        key = (round, *ids)
        if key not in self._known:
            wanted = torch.tensor(list(ids))
            free = self.legal[wanted]
            made = wanted.clone()
            if bool(free.any()):
                noise = self.noise(ids, round)[free]
                at = self.table[wanted[free].to(self.table.device)] + noise.to(self.table)
                made[free] = nearest(at, self.table, self.legal).cpu()
            self._known[key] = made.tolist()
        return list(self._known[key])

    def _etas(self, ids: Sequence[int]) -> torch.Tensor:
        etas = torch.full((len(ids),), self.eta, dtype=torch.float64)
        if self.protected is not None:
            etas[self.protected[torch.tensor(list(ids))]] = self.eta_high
        return etas


def directions(draw: np.random.Generator, count: int, d: int) -> torch.Tensor:
    """[count, d] unit vectors, float64, every direction equally likely."""
    drawn = torch.from_numpy(draw.standard_normal((count, d)))
    made: torch.Tensor = drawn / drawn.norm(dim=1, keepdim=True)
    return made


def nearest(points: torch.Tensor, table: torch.Tensor, legal: torch.Tensor) -> torch.Tensor:
    """[points] the legal row of `table` [rows, d] that is nearest to each point [points, d]; the first of equal ones."""
    rows = _precise(table)
    squares = rows.square().sum(1).masked_fill(~legal.to(rows.device), float("inf"))
    found = [(squares - 2 * part.to(rows.dtype) @ rows.T).argmin(1) for part in points.split(max(1, CHUNK // len(rows)))]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)


def eta_for(change: float, ids: Sequence[int], table: torch.Tensor, legal: torch.Tensor, draw: np.random.Generator,
            fixed: torch.Tensor | None = None) -> float:
    """The eta at which a share `change` of these tokens is replaced; `fixed` [tokens] never are, whatever eta.

    In direction u the token x is left for the first v that comes nearer: at the radius min over v of
    ||v - x||² / 2 u·(v - x) where that is above 0. So a token with radius g / eta is replaced below eta = g / that radius, and
    eta is a quantile of these: no search is needed.

    Raises:
        UserError: so many tokens are fixed that the share can't be reached.
    """
    wanted, d = torch.tensor(list(ids)), table.shape[1]
    radius, way = torch.from_numpy(draw.standard_gamma(d, size=len(wanted))), directions(draw, len(wanted), d)
    rows, limits = _precise(table).cpu(), []
    twin = _twin(rows)
    chunk = max(1, CHUNK // len(rows))
    for part, u in zip(wanted.split(chunk), way.to(rows.dtype).split(chunk), strict=True):
        apart = _apart(rows, part)
        towards = u @ rows.T - (u * rows[part]).sum(1, keepdim=True)
        # A twin has no distance: it is as near at every radius, and no replacement that anybody could see.
        reached = apart / (2 * towards).clamp(min=1e-30)
        limits.append(torch.where((towards > 0) & (apart > twin) & legal, reached, float("inf")).min(1).values)
    most = radius / torch.cat(limits).double()
    most = most if fixed is None else torch.where(fixed, 0.0, most)
    reachable = float((most > 0).double().mean())
    if change > reachable:
        raise UserError(f"change = {change:g}: only {reachable:.0%} of the tokens can be replaced, the others are protected. "
                        "Protect fewer, or replace less.")
    ordered = most.sort(descending=True).values
    count = max(1, round(change * len(ordered)))
    first, after = float(ordered[count - 1]), float(ordered[count]) if count < len(ordered) else 0.0
    return float((first * max(after, first * 1e-6)) ** 0.5)


def neighbour_distance(table: torch.Tensor, legal: torch.Tensor, ids: Collection[int]) -> float:
    """Median distance of these rows to their nearest other legal row: what noise must compare with."""
    rows, found = _precise(table).cpu(), []
    for part in torch.tensor(sorted(set(ids))).split(max(1, CHUNK // len(rows))):
        apart = _apart(rows, part).masked_fill(~legal, float("inf")).scatter(1, part[:, None], float("inf"))
        found.append(apart.min(1).values.sqrt())
    return float(torch.cat(found).median())


def _precise(table: torch.Tensor) -> torch.Tensor:
    """A small table in float64; of a large one the products take too long there."""
    return table.double() if table.numel() <= 1 << 20 else table.float()


def _apart(rows: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """[part, rows] squared distances of some rows to all."""
    squares = rows.square().sum(1)
    return (squares + squares[part][:, None] - 2 * rows[part] @ rows.T).clamp(min=0)


def _twin(rows: torch.Tensor) -> float:
    """The squared distance up to which two rows count as one, by the rounding of their format."""
    return 100 * torch.finfo(rows.dtype).eps * float(rows.square().sum(1).mean())


@dataclass
class Split:
    """A model in which the boundary is drawn: `layer` layers and the embedding below it, the rest above.

    With `far`, the layers above are taken out of this model, for good, and the far vendor's stand in their place.
    """

    model: Model
    layer: int
    privatizer: Privatizer | None = None
    labels: str = "customer"
    wire: Wire = field(default_factory=Wire)
    round: int = 0
    far: Far | None = None
    _handles: list[Any] = field(default_factory=list)
    _mask: torch.Tensor | None = None

    def __post_init__(self) -> None:
        from luthier.engine.forward import trunk_of

        bottom(self.model, self.layer)  # refuses a layer that there is not
        self.stack = stack_of(self.model)
        layers = self.stack.layers
        trunk: Any = trunk_of(self.model)
        self._handles.append(trunk.register_forward_pre_hook(self._enter, with_kwargs=True))
        if self.far:
            self.far.stand_in(self)
            return
        self._handles.append(layers[self.layer].register_forward_pre_hook(self._down, with_kwargs=True))
        if self.labels == "customer":
            self._handles.append(layers[-1].register_forward_hook(self._up))

    @property
    def mask(self) -> dict[str, torch.Tensor]:
        """[rows, tokens] which tokens of the present forward are real, where it says so; it goes along with the states."""
        return {} if self._mask is None else {"mask": self._mask.to(torch.uint8)}

    def remove(self) -> None:
        """The model as it was; the layers of one whose vendor is far do not come back."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _enter(self, module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The customer replaces ids. What the vendor wrote itself, a token at a time, it knows already."""
        ids, mask = named.get("input_ids"), named.get("attention_mask")
        self._mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        if self.privatizer is None or ids is None or ids.shape[1] == 1:
            return given, named
        return given, {**named, "input_ids": self.replaced(ids, self._mask)}

    def replaced(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """[rows, tokens] ids that are sent through the bottom; padding stays."""
        assert self.privatizer is not None
        made = ids.clone()
        for n, row in enumerate(ids.tolist()):
            real = list(range(len(row))) if mask is None else mask[n, -len(row):].nonzero()[:, 0].tolist()
            made[n, real] = torch.tensor(self.privatizer.transform([row[i] for i in real], self.round), device=ids.device)
        return made

    def _down(self, module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """States leave the customer's house as bytes. Nothing below is trained, so no gradient comes back."""
        states = given[0] if given else named["hidden_states"]
        heard = self.wire.send("down", states=states, **self.mask)["states"]
        return ((heard, *given[1:]), named) if given else (given, {**named, "hidden_states": heard})

    def _up(self, module: Any, given: tuple[Any, ...], answer: Any) -> Any:
        """The last states come back to the customer, who holds the labels and the loss."""
        heard = _Crossing.apply(hidden_of(answer), self.wire, "up", "down")
        return (heard, *answer[1:]) if isinstance(answer, tuple) else heard


def stack_of(model: Model) -> Stack:
    """The one stack of layers of a model. Raises UserError for one with two, or none."""
    stacks = layer_stacks(model)
    if len(stacks) != 1 or model.architecture == "encoder-decoder":
        raise UserError(f"{model.name} can't be split: its layers are not one stack called one after another.")
    return stacks[0]


def bottom(model: Model, layer: int) -> list[Any]:
    """The modules that the customer holds: the embedding, what comes before the first layer, and the layers below `layer`."""
    stack = stack_of(model)
    if not 0 <= layer < len(stack.layers):
        raise UserError(f"split at layer {layer}: {model.name} has {len(stack.layers)} layers; legal: 0 to "
                        f"{len(stack.layers) - 1}.")
    return list(dict.fromkeys([model.module.get_input_embeddings(), *stack.below(layer)]))


def upper(model: Model, layer: int, method: Method, ctx: FitCtx) -> Model:
    """The model with a method on what lies above the border; what the customer holds stays as it is."""
    names = {id(m): n for n, m in model.module.named_modules()}
    mine = tuple(f"{names[id(m)]}." for m in bottom(model, layer))
    model = method.prepare(model, ctx)
    model.packing = (model.module, False)  # noise is of a text: rows of one pack can't be told apart
    for name, parameter in model.module.named_parameters():
        if f"{name.removeprefix('base_model.model.')}.".startswith(mine):
            parameter.requires_grad_(False)
    return model


@torch.no_grad()
def message(split: Split, ids: torch.Tensor, mask: torch.Tensor | None = None, noise: bool = True) -> torch.Tensor:
    """[rows, tokens, width] what leaves the customer's house for these ids; without noise the bottom of the ids themselves."""
    from luthier.engine.forward import trunk_of

    caught: list[torch.Tensor] = []

    class Enough(Exception):
        """The message is made; what the vendor does with it is not asked for."""

    def catch(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        caught.append(given[0] if given else named["hidden_states"])
        raise Enough

    handle = split.stack.layers[split.layer].register_forward_pre_hook(catch, with_kwargs=True, prepend=True)
    kept, split.privatizer = split.privatizer, split.privatizer if noise else None
    try:
        named = {} if split.model.architecture == "encoder" else {"use_cache": False}
        trunk_of(split.model)(input_ids=ids, attention_mask=torch.ones_like(ids) if mask is None else mask, **named)
    except Enough:
        pass
    finally:
        split.privatizer = kept
        handle.remove()
    return caught[0]
