"""LoRA folders for tests of what combines several: random, different from one another, as PEFT writes them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch


def lora(module: Any, folder: Path, *, seed: int = 0, rank: int = 4, alpha: float = 8, spread: float = 0.3, **options: Any
         ) -> Path:
    """A LoRA with random A and B on a model (which is left as it was), saved in `folder`."""
    from peft import LoraConfig, TaskType, get_peft_model

    options = {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": TaskType.CAUSAL_LM, **options}
    wrapped: Any = get_peft_model(module, LoraConfig(r=rank, lora_alpha=alpha, **options))  # type: ignore[arg-type]
    make = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(spread * torch.randn(parameter.shape, generator=make))
    wrapped.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    wrapped.unload()
    return folder


@cache
def two() -> dict[str, str]:
    """Two LoRAs of the pico decoder, by names that the example rows have as tasks."""
    from transformers import AutoModelForCausalLM

    from luthier.engine.models import resolve

    root = Path(mkdtemp(prefix="luthier-loras-"))
    module = AutoModelForCausalLM.from_pretrained(resolve("pico"))
    return {name: str(lora(module, root / name, seed=i)) for i, name in enumerate(("thing", "word"))}
