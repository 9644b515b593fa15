"""Orders of a decoder's residual stream and of its hidden layers that leave what it computes as it is.

The residual dimension runs through embeddings, norms, what layers read (columns of q, k, v, gate and up) and what they say
(rows of o and down); the hidden one of a layer is rows of gate and up and columns of down. Rows of q and k are never moved:
rotary embeddings pair them. Which tensors there are is asked of the model, and what is not known is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.errors import UserError
from luthier.engine.layers import Stack, layer_stacks

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model

# Linear layers of a layer by the one whose input they share.
SHARING: Mapping[str, tuple[str, ...]] = {
    "q_proj": ("q_proj", "k_proj", "v_proj"), "o_proj": ("o_proj",), "gate_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",)}
LINEAR = tuple(name for names in SHARING.values() for name in names)
# What the dimensions of a tensor are, by the last two parts of its name.
SPACES: Mapping[str, dict[int, str]] = {
    "q_proj.weight": {1: "residual"}, "k_proj.weight": {1: "residual"}, "v_proj.weight": {1: "residual"},
    "q_proj.bias": {}, "k_proj.bias": {}, "v_proj.bias": {},
    "gate_proj.weight": {0: "hidden", 1: "residual"}, "up_proj.weight": {0: "hidden", 1: "residual"},
    "gate_proj.bias": {0: "hidden"}, "up_proj.bias": {0: "hidden"},
    "o_proj.weight": {0: "residual"}, "o_proj.bias": {0: "residual"},
    "down_proj.weight": {0: "residual", 1: "hidden"}, "down_proj.bias": {0: "residual"},
    "q_norm.weight": {}, "k_norm.weight": {}}  # fmt: skip
SAME = 1e-4  # how far logits may move, as a share of the largest, by sums taken in another order


def stack_of(method: str, model: Model) -> Stack:
    """The one stack of layers, each with the linear layers of `LINEAR`.

    Raises:
        UserError: another architecture; says which tensors would have to be permuted.
    """
    stacks = layer_stacks(model) if model.architecture == "decoder" else []
    wanted = f"{method} permutes embeddings, norms and the layers {', '.join(LINEAR)} of a decoder"
    if len(stacks) != 1:
        raise UserError(f"{wanted}; {model.name} is no decoder with one stack of layers. Try --method loftq.")
    for number, layer in enumerate(stacks[0].layers):
        lost = [n for n in LINEAR if len(_named(layer, n)) != 1]
        if lost:
            raise UserError(f"{wanted}; layer {number} of {model.name} has no {', '.join(lost)} of its own. Try --method "
                            "loftq.")
    return stacks[0]


def linears(model: Model, stack: Stack) -> list[dict[str, str]]:
    """Of each layer, the full names of its linear layers by their last part."""
    names = {id(m): n for n, m in model.module.named_modules()}
    return [{n: names[id(_named(layer, n)[0])] for n in LINEAR} for layer in stack.layers]


def _named(layer: Any, last: str) -> list[Any]:
    return [m for n, m in layer.named_modules() if n.rpartition(".")[2] == last]


def spaces(method: str, model: Model, layers: Sequence[Mapping[str, str]]) -> dict[tuple[str, int], str]:
    """What each dimension of each tensor is: `residual`, or `hidden/NUMBER` of a layer; only those that may be permuted.

    Raises:
        UserError: a tensor that the method does not know.
    """
    owners = {name: number for number, found in enumerate(layers) for name in found.values()}
    ends = {id(m.weight) for m in (model.module.get_input_embeddings(), model.module.get_output_embeddings())}
    found = {}
    for name, parameter in model.module.named_parameters():
        module, _, _ = name.rpartition(".")
        known = SPACES.get(".".join(name.rsplit(".", 2)[-2:])) if module in owners or "_norm." in name else None
        if id(parameter) in ends:
            known = {1: "residual"}
        elif known is None and "norm" in module.rpartition(".")[2] and parameter.shape == (model.width,):
            known = {0: "residual"}
        if known is None:
            raise UserError(f"{method} does not know how {name} {tuple(parameter.shape)} of {model.name} lies along the "
                            f"{model.width} residual channels, which all tensors must be permuted by. Try --method loftq.")
        for dim, space in known.items():
            found[name, dim] = f"hidden/{owners[module]}" if space == "hidden" else space
    return found


def apply(method: str, model: Model, stack: Stack, orders: Mapping[str, torch.Tensor]) -> dict[tuple[str, int], torch.Tensor]:
    """Permute the spaces that `orders` names; what was permuted, as `low_bits` stores it.

    Raises:
        UserError: the model does not compute what it did.
    """
    import torch

    from luthier.engine.low_bits import reorder

    known = spaces(method, model, linears(model, stack))
    along = {place: orders[space] for place, space in known.items() if space in orders}
    ids = torch.arange(5, 21, device=model.device)[None] % int(model.module.config.vocab_size)
    with torch.no_grad():
        before = model.module(input_ids=ids).logits.float()
        for (name, dim), order in along.items():
            reorder(model, name, dim, order)
        moved = float((model.module(input_ids=ids).logits.float() - before).abs().max() / before.abs().max())
    # A short format rounds every sum: what it moves by is of its own rounding.
    allowed = SAME if before.dtype == next(model.module.parameters()).dtype else 100 * SAME
    if not moved <= allowed:
        raise UserError(f"{method}: {model.name} with its channels in another order computes something else (logits move by "
                        f"{moved:.1e} of the largest): not all that reads them is known. Try --method loftq.")
    return along
