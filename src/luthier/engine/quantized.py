"""Bases in 4 bits (NF4): frozen weights at a quarter of their size in 16 bits, for adapters on a GPU (QLoRA).

Weights are stored in blocks of 64 numbers with 16 levels placed at the quantiles of a normal distribution, their scales
quantised once more; each product is computed in the training's own format (Dettmers et al. 2023). What is trained, the
adapter, stays in full precision, and only fits the base it was trained on: a quantised base is another base, with an
identity of its own. The arithmetic is that of bitsandbytes.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch

from luthier.core.errors import UserError
from luthier.core.identity import digest

Quantize = Literal["none", "nf4"]
INSTEAD = ("Leave quantize out and use --method lora on the base as it is, a smaller --base, or less memory at a time "
           "(--set tuned.activation_checkpointing=on)")


def missing() -> str:
    """What this machine lacks for 4-bit training; nothing where it can be done."""
    if not torch.cuda.is_available():
        return "it needs a GPU with CUDA, and none is found here"
    if importlib.util.find_spec("bitsandbytes") is None:
        return "it needs the package bitsandbytes: pip install \"luthier[qlora]\""
    return ""


def check(choice: Quantize, where: str) -> None:
    """Raises UserError when `where` (a base) can't be quantised on this machine."""
    why = "" if choice == "none" else missing()
    if why:
        raise UserError(f"quantize: {choice} of {where}: {why}. {INSTEAD}.")


def identity(base: str, choice: Quantize) -> str:
    """Identity of a base in this form."""
    return base if choice == "none" else digest({"base": base, "quantize": choice})


def loading(choice: Quantize, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Arguments with which transformers loads a base in this form, straight to its device."""
    if choice == "none":
        return {}
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config, "device_map": {"": device}}


def check_method(choice: Quantize, name: str, artifact: str) -> None:
    """Raises UserError for a method that would move weights that are stored in 4 bits."""
    if choice != "none" and artifact != "adapter":
        raise UserError(f"Method '{name}' moves the base's own weights, which {choice} freezes. Use a method that leaves an "
                        "adapter, such as lora, or leave base.quantize out.")
