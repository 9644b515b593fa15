"""Sharded weights: each rank keeps a part of every layer (FSDP2, `torch.distributed.fsdp.fully_shard`).

A layer is put together for its forward and its backward, and its gradients are reduced to the rank that keeps them; so
weights, gradients, masters and optimizer states of the layers take 1/ranks of the memory. What lies outside of the layers
(embeddings, vocabulary head, last norm) is kept whole on every rank, because the fused loss reads the head by itself; its
gradients are summed like those of an unsharded training. Source: Zhao et al. 2023.

Layers are the outermost lists of modules, found in the model, not in a table of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from luthier.core.errors import UserError
from luthier.engine import distributed

if TYPE_CHECKING:
    from luthier.engine.models import Model


def shard(model: Model) -> None:
    """Shard the layers of a model over all ranks.

    Raises:
        UserError: there is one process only, the model has no list of layers, or does not train all of their weights.
    """
    if distributed.ranks() == 1:
        raise UserError("sharding: fsdp divides weights among several processes, and there is one. Start it with a launcher, "
                        "such as torchrun --nproc-per-node 2 -m luthier.cli.main, or use sharding: none.")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layers = [layer for group in _layers(model.module) for layer in group]
    if not layers:
        raise UserError(f"{model.name} has no list of layers to shard. Train it with sharding: none.")
    if not all(p.requires_grad for layer in layers for p in layer.parameters()):
        raise UserError("sharding: fsdp is for training that moves every weight (--method full); this one keeps some frozen.")
    mesh = init_device_mesh(model.device.type, (distributed.ranks(),))
    for layer in layers:
        # Said, not left to the default: each layer is a root of its own, and roots stay together after their forward.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)


def _layers(module: nn.Module) -> list[nn.ModuleList]:
    found: list[nn.ModuleList] = []
    for child in module.children():
        found += [child] if isinstance(child, nn.ModuleList) else _layers(child)
    return found


def is_sharded(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a part of these is kept elsewhere."""
    return any(isinstance(t, DTensor) for t in tensors)


def groups_apart(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Optimizer groups in which sharded and whole weights don't mix: operations on lists of tensors want one kind."""
    if not any(is_sharded(g["params"]) for g in groups):
        return [dict(g) for g in groups]
    found = []
    for group in groups:
        for sharded in (False, True):
            params = [p for p in group["params"] if isinstance(p, DTensor) == sharded]
            if params:
                found.append({**group, "params": params})
    return found


def own(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this rank keeps."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tree: Any) -> Any:
    """Nested state with every sharded tensor put together; all ranks call it."""
    if isinstance(tree, DTensor):
        return tree.full_tensor()
    if isinstance(tree, dict):
        return {k: whole(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [whole(v) for v in tree]
    return tree


def like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor, sharded as `other` is if their shapes agree (a count of steps stays what it is)."""
    if isinstance(other, DTensor) and tensor.shape == other.shape and not isinstance(tensor, DTensor):
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
    return tensor


def place_state(optimizer: torch.optim.Optimizer) -> None:
    """Shard what a whole checkpoint has put into an optimizer, as its weights are."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                state[name] = like(value, parameter)


def clip_(tensors: Sequence[torch.Tensor], most: float) -> float:
    """Scale gradients so that their norm is at most `most`; returns the norm before. As torch's `clip_grad_norm_`, which
    takes no mixture of sharded and whole tensors."""
    if not is_sharded(tensors):
        return float(torch.nn.utils.clip_grad_norm_(tensors, most))
    squares = {"whole": 0.0, "own": 0.0}
    gradients = [t.grad for t in tensors if t.grad is not None]
    for gradient in gradients:
        squares["own" if isinstance(gradient, DTensor) else "whole"] += float(own(gradient).double().square().sum())
    norm = (squares["whole"] + sum(distributed.gathered(squares["own"]))) ** 0.5
    factor = most / (norm + 1e-6)
    if factor < 1:
        for gradient in gradients:
            own(gradient).mul_(factor)
    return float(norm)


def gather(model: Model, plain: Model) -> None:
    """Put a sharded model's weights into `plain`, an unsharded one of the same kind, and take its place."""
    state = whole({n: t.detach() for n, t in model.module.state_dict().items()})
    plain.module.load_state_dict(state)
    for (_, new), (_, old) in zip(plain.module.named_parameters(), model.module.named_parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    model.module = plain.module
