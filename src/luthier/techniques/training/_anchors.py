"""What regularizers that pull to the pretrained weights share: the trained linear layers, and where they began."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import UserError
from luthier.core.step import FitCtx

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


def trained_linears(what: str, model: Model, target: str | tuple[str, ...], adapters: bool) -> dict[str, Any]:
    """The linear layers whose weights are trained, the vocabulary head apart, by name. Conv1D of GPT-2 counts.

    Raises:
        UserError: there is none, none is called so, or they belong to an adapter and `adapters` is not said.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.module.get_output_embeddings() if hasattr(model.module, "get_output_embeddings") else None
    found = {name: m for name, m in model.module.named_modules()
             if m is not head and isinstance(m, (nn.Linear, Conv1D)) and m.weight.requires_grad}
    if found and hasattr(model.module, "peft_config") and not adapters:
        raise UserError(f"{what} is about pretrained weights, and an adapter's own are not ({next(iter(found))}). Use --method "
                        f"full, or {what}:adapters=true, which takes their values before the first step.")
    if not found:
        raise UserError(f"{what} finds no linear layer that is trained in {model.name}. Use --method full.")
    wanted = (target,) if isinstance(target, str) else target
    chosen = found if target == "all-linear" else {n: m for n, m in found.items()
                                                   if n in wanted or n.rsplit(".", 1)[-1] in wanted}
    if not chosen:
        short = sorted({n.rsplit(".", 1)[-1] for n in found})
        raise UserError(f"{what}: no trained linear layer is called {', '.join(wanted)}. This model has: {', '.join(short)}.")
    return chosen


def anchored(what: str, model: Model, layers: dict[str, Any], ctx: FitCtx, reference: str = "") -> dict[str, torch.Tensor]:
    """The weight that each layer is held to: a copy of the present one, or that of the model in the folder `reference`.

    Raises:
        UserError: training has begun and no reference says where; a weight has no numbers of its own; a reference that lacks
            a weight, or has it in another shape.
    """
    if ctx.clock is not None and ctx.clock.step and not reference:
        raise UserError(f"{what} was attached after {ctx.clock.step} steps: these weights are not the pretrained ones. Attach "
                        f"it before the first step, or name them ({what}:reference=FOLDER).")
    for name, layer in layers.items():
        if layer.weight.is_meta or not layer.weight.is_floating_point():
            kind = "on the meta device" if layer.weight.is_meta else f"quantised ({layer.weight.dtype})"
            raise UserError(f"{what}: the weight of {name} is {kind}; legal are weights in a floating format.")
    if not reference:
        return {name: layer.weight.detach().clone() for name, layer in layers.items()}
    weights = _of_folder(what, model, reference)
    wrong = [f"{name} is {_shape(weights.get(f'{name}.weight'))}, not {_shape(layer.weight)}" for name, layer in layers.items()
             if _shape(weights.get(f"{name}.weight")) != _shape(layer.weight)]
    if wrong:
        raise UserError(f"{what}: the model in {reference} does not fit {model.name}: {len(wrong)} weights differ in shape. "
                        f"{'; '.join(wrong[:5])}{'; …' if wrong[5:] else ''}.")
    return {name: weights[f"{name}.weight"].detach().to(layer.weight) for name, layer in layers.items()}


def _of_folder(what: str, model: Model, reference: str) -> dict[str, torch.Tensor]:
    from luthier.engine.models import architecture_of, auto_class, check_folder

    folder: Path = check_folder(reference)
    if architecture_of(folder) != model.architecture:
        raise UserError(f"{what}: the model in {reference} is an {architecture_of(folder)}, {model.name} an "
                        f"{model.architecture}.")
    loaded = auto_class(folder).from_pretrained(folder, local_files_only=True, use_safetensors=True,
                                                            trust_remote_code=False)
    return dict(loaded.named_parameters())


def _shape(weight: torch.Tensor | None) -> str:
    return "missing" if weight is None else "x".join(map(str, weight.shape))
