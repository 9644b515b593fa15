"""Layers: the stacks of layers in a model's trunk, found by watching it compute, and stand-ins for some of them.

A stack is a module list whose members are called once each, in order, every one with what the one before it said.
Nothing is known of any architecture: a model that calls its layers otherwise has no stack, and whoever asks is told so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from luthier.engine.attention import no_masks
from luthier.engine.forward import _takes_layout, trunk_of

if TYPE_CHECKING:
    from luthier.engine.models import Model


Answers = Literal["states", "tuple", "more"]


@dataclass(frozen=True)
class Stack:
    """One stack of a trunk.

    name: of the module list within the trunk (`encoder.layer`). before, after: modules entered before the first layer
    and after the last one, without those that hold the stack; after an encoder's stack only those of the encoder, and
    never the vocabulary head. answers: what every layer answers with, [batch, tokens, width] `states`, a `tuple` of
    nothing but these, or `more`.
    """

    trunk: nn.Module
    name: str
    before: tuple[nn.Module, ...]
    after: tuple[nn.Module, ...]
    answers: Answers

    @property
    def layers(self) -> nn.ModuleList:
        """The layers as they stand in the model now."""
        found = self.trunk.get_submodule(self.name)
        assert isinstance(found, nn.ModuleList)
        return found

    def lowest(self, trained: set[int]) -> int:
        """How many layers lie below everything trained (`id(parameter)`): 0 = none, all = no layer is trained.

        A trained weight of the trunk that is neither in a layer nor after the stack counts as lying below it.
        """
        layers = list(self.layers)
        above = {id(p) for module in (*layers, *self.after) for p in module.parameters()}
        if any(id(p) in trained - above for p in self.trunk.parameters()):
            return 0
        owners = (i for i, layer in enumerate(layers) if any(id(p) in trained for p in layer.parameters()))
        return next(owners, len(layers))

    def below(self, count: int) -> list[nn.Module]:
        """Every module that hidden states pass before they leave the first `count` layers."""
        return [*self.before, *self.layers[:count]]


@dataclass
class _Watch:
    """What was seen of one forward: when each module was entered first, how often, with what, and what it said."""

    entered: dict[nn.Module, int] = field(default_factory=dict)
    calls: Counter[nn.Module] = field(default_factory=Counter)
    given: dict[nn.Module, list[torch.Tensor]] = field(default_factory=dict)
    said: dict[nn.Module, Any] = field(default_factory=dict)

    def enter(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.entered.setdefault(module, len(self.entered))
        self.calls[module] += 1
        self.given[module] = [a for a in (*arguments, *named.values()) if isinstance(a, torch.Tensor)]

    def leave(self, module: nn.Module, arguments: tuple[Any, ...], answer: Any) -> None:
        self.said[module] = answer

    def chained(self, members: Sequence[nn.Module]) -> bool:
        """Were all called once, in order, each with the hidden states of the one before?"""
        if any(self.calls[m] != 1 for m in members):
            return False
        return all(self.entered[one] < self.entered[other] and
                   any(t is hidden_of(self.said[one]) for t in self.given[other])
                   for one, other in pairwise(members))


def hidden_of(answer: Any) -> Any:
    """The hidden states in what a layer answers with."""
    return answer[0] if isinstance(answer, tuple) else answer


def layer_stacks(model: Model) -> list[Stack]:
    """The stacks of a model's trunk in the order of their calls; encoder and decoder have one each.

    Of a model with one side only the longest is returned; none where layers are shared or called in other ways.
    """
    trunk = trunk_of(model)
    assert isinstance(trunk, nn.Module)
    watch = _watched(model, trunk)
    lists = {name: list(m) for name, m in trunk.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    chains = {name: members for name, members in lists.items() if watch.chained(members)}
    outer = {name: members for name, members in chains.items()
             if not any(name.startswith(f"{other}.") for other in chains)}
    names = sorted(outer, key=lambda n: watch.entered[outer[n][0]])
    if model.architecture != "encoder-decoder" and names:
        names = [max(names, key=lambda n: len(outer[n]))]
    head = model.module.get_output_embeddings() if hasattr(model.module, "get_output_embeddings") else None
    stacks = [_stack(trunk, name, outer[name], watch, model.width) for name in names]
    for i, stack in enumerate(stacks):
        mine = set(stack.trunk.get_submodule(stack.name.rpartition(".")[0]).modules())
        own = stack.after if stack is stacks[-1] else [m for m in stack.after if m in mine]
        stacks[i] = replace(stack, after=tuple(m for m in own if m is not head))
    return stacks


def entered(model: Model) -> list[nn.Module]:
    """The modules of a model's trunk in the order in which a forward first calls them; those that it never calls left out."""
    trunk = trunk_of(model)
    assert isinstance(trunk, nn.Module)
    found = _watched(model, trunk).entered
    return sorted(found, key=found.__getitem__)


def _watched(model: Model, trunk: nn.Module) -> _Watch:
    """One forward of a few tokens, evaluation mode, without gradients."""
    if model.sounds:
        asked: dict[str, Any] = {"input_values": model.sounds.blank.to(model.device)}
    else:
        ids = torch.arange(5, 11, device=model.device)[None] % model.vocabulary
        asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.architecture == "encoder-decoder":
        asked |= {"decoder_input_ids": ids, "decoder_attention_mask": torch.ones_like(ids)}
    if model.architecture != "encoder":
        asked["use_cache"] = False
    watch = _Watch()
    with ExitStack() as undo:
        for module in trunk.modules():
            undo.callback(module.register_forward_pre_hook(watch.enter, with_kwargs=True).remove)
            undo.callback(module.register_forward_hook(watch.leave).remove)
        undo.enter_context(evaluating(trunk.modules()))
        undo.enter_context(torch.no_grad())
        if model.device.type == "meta" and _takes_layout(model):
            undo.enter_context(no_masks())  # a mask is made of values, and a model without weights has none
        trunk(**asked)
    return watch


def _stack(trunk: nn.Module, name: str, members: Sequence[nn.Module], watch: _Watch, width: int) -> Stack:
    first, last = watch.entered[members[0]], watch.entered[members[-1]]
    inside = {m for member in members for m in member.modules()}
    holding = {trunk, *(trunk.get_submodule(name[:i]) for i, c in enumerate(name) if c == ".")}
    others = [m for m in watch.entered if m not in inside and m not in holding]
    return Stack(trunk, name, tuple(m for m in others if watch.entered[m] < first),
                 tuple(m for m in others if watch.entered[m] > last),
                 _answers([watch.said[m] for m in members], width))


def _answers(said: Sequence[Any], width: int) -> Answers:
    tuples = [isinstance(a, tuple) for a in said]
    if any(hidden_of(a).dim() != 3 or hidden_of(a).shape[-1] != width or (isinstance(a, tuple) and len(a) > 1)
           for a in said) or any(tuples) != all(tuples):
        return "more"
    return "tuple" if all(tuples) else "states"


class _StandIn(nn.Module):
    """In a layer's place for a while. What it isn't asked to do otherwise, the layer itself answers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # Not through nn.Module, whose registered children would change the names of the model's weights.
        self.__dict__["layer"] = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)


class Skip(_StandIn):
    """Answers with states that are known, whatever it is given."""

    def __init__(self, layer: nn.Module, known: Callable[[], torch.Tensor], as_tuple: bool) -> None:
        super().__init__(layer)
        self.__dict__.update(known=known, as_tuple=as_tuple)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The known states, in the form in which the layer answers."""
        return (self.known(),) if self.as_tuple else self.known()


class Unrecorded(_StandIn):
    """Computes as the layer does, and autograd keeps nothing of it."""

    def __init__(self, layer: nn.Module, marked: bool) -> None:
        super().__init__(layer)
        self.__dict__["marked"] = marked

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """What the layer says, cut off from what came before it; `marked` as asking for a gradient."""
        with torch.no_grad():
            answer = self.layer(*arguments, **named)
        if self.marked and torch.is_grad_enabled():
            hidden_of(answer).requires_grad_()
        return answer


@contextmanager
def standing_in(stack: Stack, places: range, make: Callable[[nn.Module, int], nn.Module]) -> Iterator[None]:
    """Within this block, `make(layer, place)` stands at each of these places; the length of the list stays what it is."""
    layers = stack.layers
    own = {i: layers[i] for i in places}
    try:
        for i, layer in own.items():
            layers[i] = make(layer, i)
        yield
    finally:
        for i, layer in own.items():
            layers[i] = layer


@contextmanager
def evaluating(modules: Iterator[nn.Module] | Sequence[nn.Module]) -> Iterator[None]:
    """Within this block these modules, each for itself, are in evaluation mode."""
    was = [(m, m.training) for m in modules]
    try:
        for module, _ in was:
            module.training = False
        yield
    finally:
        for module, training in was:
            module.training = training
