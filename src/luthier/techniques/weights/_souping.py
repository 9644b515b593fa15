"""Weights of several models put into one that is loaded: given shares of each, or shares that are learned."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from luthier.core.step import Ctx
    from luthier.engine.models import Model
    from luthier.techniques.weights._rows import Asked


def unit_of(name: str) -> str:
    """The numbered layer that a tensor of a file belongs to; "" for embeddings, last norms and heads."""
    found = re.search(r"(?:^|\.)((?:\w+\.)\d+)(?=\.)", name)
    return found[1] if found and not name.startswith("heads/") else ""


def places(model: Model) -> Callable[[str], torch.Tensor | None]:
    """Where a tensor of the files (`heads/TASK.NAME` of heads) stands in a loaded model; None for what it does not hold."""
    own: dict[str, torch.Tensor] = {**dict(model.module.named_buffers()),
                                    **dict(model.module.named_parameters(remove_duplicate=False))}
    own |= {f"heads/{task}.{n}": t for task, head in model.heads.items() for n, t in head.state_dict(keep_vars=True).items()}
    prefix = f"{model.module.base_model_prefix}."

    def place(name: str) -> torch.Tensor | None:
        # A body that was saved alone, or with a head, has a prefix or has none.
        return next((own[n] for n in (name, prefix + name, name.removeprefix(prefix)) if n in own), None)

    return place


def placed(model: Model, ctx: Ctx, number: int) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, place, tensor) of everything that one of the models holds and the loaded one can take, tied weights once."""
    find, seen = places(model), set()
    for name, tensor in ctx.stream(f"models/{number}"):
        place = find(name)
        if place is not None and tensor.is_floating_point() and id(place) not in seen:
            seen.add(id(place))
            yield name, place, tensor


def fill(model: Model, ctx: Ctx, shares: Sequence[float]) -> None:
    """Set the loaded weights to sum_i s_i W_i; models without a share are not read."""
    import torch

    first = True
    with torch.no_grad():
        for number, share in enumerate(shares):
            if share == 0:
                continue
            for _, place, tensor in placed(model, ctx, number):
                part = tensor.to(place.device, torch.float32) * share
                place.copy_(part if first else place.float() + part)
            first = False
    model.quick_head = None


def learn(model: Model, ctx: Ctx, count: int, asked: Asked, per_layer: bool, rate: float, epochs: int, decay: float
          ) -> dict[str, Any]:
    """Shares that lower the loss of `asked`, by unit; the factor b, and the mean loss of each epoch.

    All models are held at once; the loaded one is left as it was.
    """
    import torch
    from torch.func import functional_call  # type: ignore[attr-defined]

    body = _body(model, asked)
    names = {id(p): n for n, p in (*body.named_parameters(), *body.named_buffers())}
    stacks: dict[str, list[torch.Tensor]] = {}
    unit: dict[str, int] = {}
    units = [""]
    for number in range(count):
        for stored, place, tensor in placed(model, ctx, number):
            own = unit_of(stored) if per_layer else ""
            units += [own] if own not in units else []
            unit[names[id(place)]] = units.index(own)
            stacks.setdefault(names[id(place)], []).append(tensor.to(place.device, torch.float32))
    whole = {name: torch.stack(parts) for name, parts in stacks.items()}
    raw = torch.zeros(len(units), count, device=model.device, requires_grad=True)
    factor = torch.ones((), device=model.device, requires_grad=True)
    heads = [head.register_forward_hook(lambda m, a, said: said * factor) for head in model.heads.values()]
    lone = _lone_head(model, body)
    optimizer = torch.optim.AdamW([raw, *([factor] if heads or lone else [])], lr=rate, weight_decay=decay)
    losses = []
    try:
        for epoch in range(epochs):
            found = []
            for number in ctx.rng("shares", epoch).permutation(len(asked.batches)):
                shares = raw.softmax(1)
                mixed = {name: torch.tensordot(shares[unit[name]], stack, 1) for name, stack in whole.items()}
                mixed |= {name: mixed[name] * factor for name in lone}
                loss = functional_call(body, mixed, (asked.batches[number],))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                found.append(float(loss.detach()))
            losses.append(sum(found) / len(found))
    finally:
        for hook in heads:
            hook.remove()
    return {"shares": dict(zip(units, raw.detach().softmax(1).tolist(), strict=True)), "factor": float(factor.detach()),
            "losses": losses}


def _body(model: Model, asked: Asked) -> torch.nn.Module:
    """Model and heads as one module whose forward is the loss of a batch."""
    from torch import nn

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.heads = model.module, nn.ModuleList(model.heads.values())

        def forward(self, batch: Any) -> torch.Tensor:
            return asked.loss(batch)

    return Body()


def _lone_head(model: Model, body: torch.nn.Module) -> list[str]:
    """Names of weight and bias of a vocabulary head that is not the embedding, where no head of labels answers."""
    head = model.module.get_output_embeddings() if not model.heads and hasattr(model.module, "get_output_embeddings") else None
    if head is None or head.weight is model.module.get_input_embeddings().weight:
        return []
    own = {id(p) for p in head.parameters()}
    return [n for n, p in body.named_parameters() if id(p) in own]
