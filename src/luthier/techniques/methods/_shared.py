"""What methods share: the names of linear layers, and wrapping a model with PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.engine.models import Model


def linear_names(model: Model) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every linear layer except the vocabulary head, by name. Conv1D of GPT-2 counts."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.module.get_output_embeddings() if hasattr(model.module, "get_output_embeddings") else None
    found = {}
    for name, module in model.module.named_modules():
        if module is not head and isinstance(module, (nn.Linear, Conv1D)):
            # A weight in 4 bits is packed: its shape is not that of the layer.
            rows, columns = module.weight.shape
            found[name] = (rows, columns) if isinstance(module, Conv1D) else (module.in_features, module.out_features)
    return found


def wrap(model: Model, config: Any) -> Model:
    """The model with a PEFT method on it. Adapter weights take the model's format: the loop keeps float32 masters."""
    from peft import TaskType, get_peft_model

    tasks = {"encoder": TaskType.FEATURE_EXTRACTION, "decoder": TaskType.CAUSAL_LM,
             "encoder-decoder": TaskType.SEQ_2_SEQ_LM}
    config.task_type = tasks[model.architecture]
    dtype = next(model.module.parameters()).dtype
    model.module = get_peft_model(model.module, config, autocast_adapter_dtype=False)
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return model
