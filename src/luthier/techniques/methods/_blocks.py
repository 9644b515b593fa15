"""The heads and hidden neurons of a model's layers: which rows and columns of which linear layers are theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.errors import UserError
from luthier.engine.layers import layer_stacks

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model
    from luthier.engine.pruning import Kept


@dataclass(frozen=True)
class Layout:
    """Names within a layer: what makes queries, keys and values, what reads them, what makes neurons, and what reads those."""

    query: str
    key: str
    value: str
    out: str
    makes: tuple[str, ...]
    reads: str

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (self.query, self.key, self.value, self.out, *self.makes, self.reads)


LAYOUTS = (
    Layout("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
           ("intermediate.dense",), "output.dense"),
    Layout("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", ("mlp.gate_proj", "mlp.up_proj"),
           "mlp.down_proj"),
)


@dataclass(frozen=True)
class Block:
    """One layer: its linear layers by their names in the base, `heads` of `width` that share `groups` keys, and neurons."""

    prefix: str
    layout: Layout
    heads: int
    groups: int
    width: int
    neurons: int

    def name(self, last: str) -> str:
        """Of a linear layer, in the base."""
        return f"{self.prefix}.{last}"

    def kept(self, groups: torch.Tensor, neurons: torch.Tensor) -> Mapping[str, Kept]:
        """What is left of the linear layers when these groups of heads and these neurons are."""
        from luthier.engine.pruning import Kept

        layout = self.layout
        found: dict[str, Kept] = {}
        if len(groups) < self.groups:
            own = _spread(groups, self.width)
            asked = _spread(_spread(groups, self.heads // self.groups), self.width)
            found |= {self.name(layout.query): Kept(rows=asked), self.name(layout.key): Kept(rows=own),
                      self.name(layout.value): Kept(rows=own), self.name(layout.out): Kept(columns=asked)}
        if len(neurons) < self.neurons:
            found |= {self.name(n): Kept(rows=neurons) for n in layout.makes}
            found[self.name(layout.reads)] = Kept(columns=neurons)
        return found


def _spread(places: torch.Tensor, width: int) -> torch.Tensor:
    """The places of all members of these groups of `width`."""
    import torch

    return (places[:, None] * width + torch.arange(width)).flatten()


def blocks(method: str, model: Model) -> list[Block]:
    """Every layer's heads and neurons.

    Raises:
        UserError: layers that are shared, called in other ways, or of another layout.
    """
    inner = model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.module
    names = {id(m): n for n, m in inner.named_modules()}
    stacks = layer_stacks(model)
    if len(stacks) != 1:
        raise UserError(f"{method} cuts the layers of one stack; those of {model.name} are shared, not called one after "
                        "another, or in two stacks. Try --method lora.")
    found = []
    for layer in stacks[0].layers:
        inside: dict[str, Any] = dict(layer.named_modules())
        layout = next((x for x in LAYOUTS if all(n in inside for n in x.names)), None)
        if layout is None:
            raise UserError(f"{method} does not know the heads and neurons of {model.name}. Its layers have: "
                            f"{', '.join(n for n in inside if n)}. Try --method lora.")
        config = model.module.config
        width = int(getattr(config, "head_dim", None) or model.width // config.num_attention_heads)
        found.append(Block(names[id(layer)], layout, inside[layout.out].in_features // width,
                           inside[layout.key].out_features // width, width, inside[layout.reads].in_features))
    weights = [inner.get_submodule(b.name(n)).weight for b in found for n in b.layout.names]
    if len({id(w) for w in weights}) < len(weights):
        raise UserError(f"{method}: layers of {model.name} share weights, and can't be cut apart. Try --method lora.")
    return found
