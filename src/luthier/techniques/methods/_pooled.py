"""A pool of modulators with keys, as a tuner in PEFT: each row of a batch takes the one whose key its inputs are most like
(`_keys.py`).

Each entry is a weight of its own, and one that no row took has no gradient: in one stacked tensor, momentum and weight decay
would go on moving all.

Importing this module makes the tuner known to PEFT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from torch import nn

from luthier.core.errors import UserError
from luthier.techniques.methods._keys import Keys, Picked
from luthier.techniques.methods._shared import sides
from luthier.techniques.methods._tuners import Around, LayerTuner, register


@dataclass
class PooledConfig(PeftConfig):
    """target_modules: modulated layers; of IA3, `before` are those whose inputs are scaled, and `fused` hold q, k and v.

    entries: of the pool, the first `reserved` of which modulate nothing; rank, alpha: of LoRA.
    """

    target_modules: list[str] = field(default_factory=list)
    modules_to_save: list[str] | None = None
    exclude_modules: list[str] | None = None
    modulator: str = "lora"
    entries: int = 1
    reserved: int = 0
    rank: int = 8
    alpha: float = 16
    before: list[str] = field(default_factory=list)
    fused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = "LUTHIER_POOLED"  # type: ignore[assignment]


class Modulators(nn.Module):
    """The entries of one layer: of LoRA A [rank, in] and B [out, rank], of IA3 a vector of ones."""

    def __init__(self, config: PooledConfig, size: tuple[int, int], scaled: int, like: torch.Tensor) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        count = config.entries - config.reserved
        self.lora = config.modulator == "lora"
        self.scale = config.alpha / config.rank
        if self.lora:
            self.down = nn.ParameterList(torch.empty(config.rank, size[0], **options) for _ in range(count))
            self.up = nn.ParameterList(torch.zeros(size[1], config.rank, **options) for _ in range(count))
            for down in self.down:
                nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        else:
            self.vectors = nn.ParameterList(torch.ones(scaled, **options) for _ in range(count))

    def added(self, x: torch.Tensor, picked: Picked) -> torch.Tensor:
        """[rows, tokens, out] scale B_j A_j x from x [rows, tokens, in]."""
        down, up = (_stacked(part, picked) for part in (self.down, self.up))
        return self.scale * (x.to(down.dtype) @ down.transpose(1, 2) @ up.transpose(1, 2))

    def scaled(self, x: torch.Tensor, picked: Picked) -> torch.Tensor:
        """x [rows, tokens, width] with its last numbers scaled by the rows' vectors."""
        vectors = _stacked(self.vectors, picked)
        whole = nn.functional.pad(vectors, (x.shape[-1] - vectors.shape[1], 0), value=1.0)
        return x * whole[:, None].to(x.dtype)


def _stacked(parts: nn.ParameterList, picked: Picked) -> torch.Tensor:
    """The weights of each row; only entries that some row takes get gradients."""
    return torch.stack([parts[j] for j in picked.there])[picked.at]


class Pooled(Around):
    """A linear layer that each row goes through with the modulator of its entry."""

    adapter_layer_names = ("pooled_layers",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: PooledConfig, like: torch.Tensor, name: str,
                 keys: Keys) -> None:
        size = sides(base_layer)
        scales_inputs = name in config.before
        scaled = size[0] if scales_inputs else size[1] * 2 // 3 if name in config.fused else size[1]
        super().__init__(base_layer, adapter_name, Modulators(config, size, scaled, like),  # type: ignore[arg-type]
                         config.inference_mode)
        self.scales_inputs = scales_inputs
        self.__dict__["keys"] = keys  # they stand in the model once, at the tuner

    def forward(self, x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        """The layer's answer [rows, tokens, out], modulated.

        Raises:
            UserError: rows that nobody has chosen entries for.
        """
        out: torch.Tensor
        if self.off:
            out = self.base_layer(x, *given, **named)
            return out
        part, picked = self.pooled_layers[self.active_adapters[0]], self.keys.picked
        if picked is None or x.dim() != 3 or picked.count != len(x):
            raise UserError(f"l2m: a layer is given {tuple(x.shape)}, and entries are chosen for "
                            f"{picked.count if picked else 0} rows. Layers that don't see rows apart can't be modulated.")
        if self.scales_inputs and picked.there:
            x = self._on_rows(x, picked, part.scaled(self._rows(x, picked), picked))
        out = self.base_layer(x, *given, **named)
        if self.scales_inputs or not picked.there:
            return out
        if part.lora:
            added = part.added(self._rows(x, picked), picked).to(out.dtype)
            return out + added if picked.rows is None else out.index_add(0, picked.rows, added)
        return self._on_rows(out, picked, part.scaled(self._rows(out, picked), picked))

    @staticmethod
    def _rows(x: torch.Tensor, picked: Picked) -> torch.Tensor:
        return x if picked.rows is None else x[picked.rows]

    @staticmethod
    def _on_rows(x: torch.Tensor, picked: Picked, changed: torch.Tensor) -> torch.Tensor:
        return changed if picked.rows is None else x.index_copy(0, picked.rows, changed)

    def merge(self, *given: Any, **named: Any) -> None:
        """Refused: which modulator is taken depends on the input."""
        raise UserError("A pool of modulators can't be merged into the base's weights: each input takes another one. Keep it "
                        "beside the base, or use --method lora.")


class PooledModel(LayerTuner):
    """The seam for `Pooled`, which holds the keys for all layers."""

    prefix: str = "pooled_"
    tuner_layer_cls = Pooled
    pooled_keys: nn.ModuleDict

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        assert isinstance(config, PooledConfig)
        inner: Any = model
        asked = inner.get_encoder() if inner.config.is_encoder_decoder else inner.base_model
        self.pooled_keys = nn.ModuleDict({adapter_name: Keys(config.entries, config.reserved, asked)})

    def _create_and_replace(self, peft_config: PeftConfig, adapter_name: str, target: nn.Module, target_name: str,
                            parent: nn.Module, current_key: str, parameter_name: str | None = None) -> None:
        assert isinstance(peft_config, PooledConfig)
        keys = self.pooled_keys[adapter_name]
        assert isinstance(keys, Keys)
        made = Pooled(target, adapter_name, peft_config, next(self.model.parameters()), current_key, keys)
        made.train(target.training)
        setattr(parent, target_name, made)


register("LUTHIER_POOLED", PooledConfig, PooledModel)
