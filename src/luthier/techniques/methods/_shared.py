"""What methods share: linear layers and which of them are meant, and wrapping a model with PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.core.errors import UserError

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
            found[name] = sides(module)
    return found


def sides(layer: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer. A weight in 4 bits is packed: its shape is not that of the layer."""
    if hasattr(layer, "in_features"):
        return int(layer.in_features), int(layer.out_features)
    rows, columns = layer.weight.shape  # Conv1D
    return int(rows), int(columns)


ATTENTION_QV = ("q_proj", "v_proj", "query", "value", "q", "v")


def targeted(method: str, model: Model, target: str | tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the linear layers that `all-linear`, `attention-qv`, or names of layers mean.

    A name is the end of a layer's path, as long as it takes: `up_proj` in all layers, `layers.3.mlp.up_proj` in one.

    Raises:
        UserError: no layer is called so; names `method` and the layers there are.
    """
    names = linear_names(model)
    if target == "all-linear":
        return dict(sorted(names.items()))
    given = (target,) if isinstance(target, str) else target
    wanted = ATTENTION_QV if target == "attention-qv" else given
    found = {n: names[n] for n in sorted(names) if any(f".{n}".endswith(f".{w}") for w in wanted)}
    missing = [w for w in wanted if not any(f".{n}".endswith(f".{w}") for n in found)]
    if not found or (missing and wanted is given):
        short = sorted({n.rsplit(".", 1)[-1] for n in names})
        raise UserError(f"{method}: no linear layer is called {', '.join(missing)}. This model has: {', '.join(short)}.")
    return found


def require_rank(method: str, rank: int, targets: dict[str, tuple[int, int]], field: str = "rank") -> None:
    """Raises UserError for a rank above the smallest side of a targeted layer."""
    smallest = min(map(min, targets.values()))
    if rank > smallest:
        raise UserError(f"{method}: {field} = {rank} is above {smallest}, the smallest side of a targeted layer.")


def percent(value: Any) -> Any:
    """25% as 0.25; what is no text with a % at its end as it is. Raises ValueError for what is no number."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            raise ValueError(f"{value!r} is no share; write 25% or 0.25") from None
    return value


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


def lora_layers(module: Any) -> dict[str, Any]:
    """PEFT's LoRA layers by the name that each layer has in the base, in the order of the model."""
    return {name.removeprefix("base_model.model."): layer for name, layer in module.named_modules() if hasattr(layer, "lora_A")}


def in_float32(model: Model) -> Model:
    """The adapter in float32: moves as small as those of the finite differences are lost in bfloat16."""
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def relora(model: Model, factors: dict[str, tuple[Any, Any]], scale: float | None, alpha: float = 0.0) -> None:
    """In place of the model's adapter, a LoRA of these A [rank, in] and B [out, rank] by layer, each with its own rank.

    Every layer is scaled by `scale`, or by `alpha` / its rank where `scale` is None.
    """
    import torch
    from peft import LoraConfig

    ranks = {name: len(down) for name, (down, _) in factors.items()}
    pattern = {} if scale is None else {name: scale * rank for name, rank in ranks.items()}
    dtypes = {down.dtype for down, _ in factors.values()}
    model.module = model.module.unload()
    top = max(ranks.values())
    wrap(model, LoraConfig(r=top, lora_alpha=alpha if scale is None else scale * top,  # type: ignore[arg-type]
                           target_modules=list(factors), rank_pattern={n: r for n, r in ranks.items() if r != top},
                           alpha_pattern={n: a for n, a in pattern.items() if ranks[n] != top}))
    if dtypes == {torch.float32}:
        in_float32(model)
    model.module.eval()
    with torch.no_grad():
        for name, layer in lora_layers(model.module).items():
            layer.lora_A["default"].weight.copy_(factors[name][0])
            layer.lora_B["default"].weight.copy_(factors[name][1])
