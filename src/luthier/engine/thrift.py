"""Training in less memory: activations that are computed again, optimizer states that lie beside the GPU.

With activation checkpointing only the input of each layer is kept in the forward; the backward computes the layer once
more, with the same dropout, so gradients are the same and a step costs about a third more work (Chen et al. 2016). With
offload the float32 masters and the optimizer's states stay in the computer's memory and the update is made there;
gradients go down and weights up once a step (Ren et al. 2021, ZeRO-Offload).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

from luthier.core.errors import UserError
from luthier.engine.memory import available_mb

if TYPE_CHECKING:
    from luthier.engine.models import Model

Checkpointing = Literal["auto", "on", "off"]
Offload = Literal["none", "optimizer"]
# Bytes of activations a token leaves in one layer, per unit of width and 2 bytes a number, without attention scores:
# Korthikanti et al. 2022, equation 1.
BYTES_A_UNIT = 34
# Share of the free memory that activations may take before `auto` computes them again.
ROOM = 0.5


def activation_mb(model: Model, tokens: int) -> float:
    """Megabytes that the activations of so many tokens take in the forward, estimated from the layers' width."""
    config = model.module.config
    layers = int(getattr(config, "num_hidden_layers", 0) or getattr(config, "num_layers", 1))
    if model.architecture == "encoder-decoder":
        layers *= 2
    size = int(next(p for p in model.module.parameters() if p.is_floating_point()).element_size())
    return tokens * layers * model.width * BYTES_A_UNIT * size / 2 / 1e6


def wants_checkpointing(choice: Checkpointing, model: Model, tokens: int) -> bool:
    """Whether to compute activations again: as asked, or by comparing the estimate with the memory that is free.

    Raises:
        UserError: asked for, and this model can't.
    """
    able = bool(getattr(_base(model), "supports_gradient_checkpointing", False))
    if choice == "on" and not able:
        raise UserError(f"activation_checkpointing: on: {model.name} ({type(_base(model)).__name__}) has no layers that "
                        "can be computed again. Use auto or off, and fewer micro_tokens.")
    free = torch.cuda.mem_get_info(model.device)[0] / 1e6 if model.device.type == "cuda" else available_mb()
    return choice == "on" or (choice == "auto" and able and activation_mb(model, tokens) > ROOM * free)


@contextmanager
def checkpointing(model: Model, on: bool) -> Iterator[None]:
    """Within this block a model in training mode keeps layer inputs only."""
    if not on:
        yield
        return
    base = _base(model)
    # Named so from transformers 5.2 on; the older name is the same call.
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    disable = getattr(base, "activation_checkpointing_disable", None) or base.gradient_checkpointing_disable
    enable({"use_reentrant": False})
    try:
        yield
    finally:
        disable()


def check_offload(choice: Offload, device: torch.device) -> None:
    """Raises UserError for an offload that has nowhere to go."""
    if choice != "none" and device.type != "cuda":
        raise UserError(f"offload: {choice} keeps the optimizer's states in the computer's memory, beside a GPU's. This "
                        f"training runs on {device.type}: they are there already. Leave offload out; to need less memory, "
                        "use --method lora, or activation_checkpointing: on.")


def _base(model: Model) -> Any:
    return model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.module
