"""Where the weights of a model are: each class lists its tensors and reads one at a time.

`Stored` is a folder of safetensors shards; `Changed` one with a delta on it, `Adapted` one with a PEFT adapter, whose change
of each layer is made while the layer is read: the layers are PEFT's, on a model that has no weights of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.engine import low_bits, pruning
from luthier.engine.deltas import Delta
from luthier.engine.tensors import Spec, specs_of

INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_model.safetensors"


class Weights(Protocol):
    """The tensors of one model by name. `read` may give a wider type than `specs` states."""

    specs: dict[str, Spec]

    def read(self, name: str) -> torch.Tensor: ...


class Stored:
    """The tensors of a model folder, or of one file.

    Raises:
        UserError: a shard that the index names is missing, or a file is damaged.
    """

    def __init__(self, place: Path) -> None:
        self._files: dict[str, Path] = {}
        self.specs: dict[str, Spec] = {}
        for path in [place] if place.is_file() else self._shards(place):
            for name, spec in specs_of(path).items():
                self.specs[name], self._files[name] = spec, path

    @staticmethod
    def _shards(folder: Path) -> list[Path]:
        index = folder / INDEX_FILE
        if not index.exists():
            return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
        named = sorted({folder / name for name in read_json(index)["weight_map"].values()})
        if lost := [path.name for path in named if not path.exists()]:
            raise UserError(f"{folder} lacks {len(lost)} of {len(named)} shards that {INDEX_FILE} names; first: {lost[0]}. "
                            "Fetch the model again.")
        return named

    def read(self, name: str) -> torch.Tensor:
        # Opened for each tensor: an open file keeps every page that was read of it.
        with safe_open(self._files[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor


class Changed:
    """A base with a delta on it.

    Raises:
        UserError: the delta names a tensor that the base does not have.
    """

    def __init__(self, base: Weights, folder: Path) -> None:
        low_bits.refuse(folder)
        pruning.refuse(folder)
        self._base, self._delta, self.specs = base, Delta(folder), dict(base.specs)
        if lost := [n for n in self._delta.parts if n not in base.specs]:
            raise UserError(f"The delta in {folder} does not fit its base: {len(lost)} tensors have no place there (first: "
                            f"{lost[0]}).")

    def read(self, name: str) -> torch.Tensor:
        return self._delta.apply(name, self._base.read(name))


class Adapted:
    """A base with a PEFT adapter on it, in float32 where the adapter changes it.

    config: folder of the base's config.json; auto: the transformers class that builds it.

    Raises:
        UserError: an adapter that can't be merged layer by layer, or that does not fit the base.
    """

    def __init__(self, base: Weights, config: Path, auto: Any, folder: Path) -> None:
        low_bits.refuse(folder)
        pruning.refuse(folder)
        self._base, self.specs = base, dict(base.specs)
        self._folder = folder
        # Of each changed layer: the names of its own parameters in the base's files.
        self._layers: dict[str, tuple[Any, dict[str, str]]] = {}
        for layer, module in self._on_meta(config, auto).items():
            own = {n: self._stored(f"{layer}.{n}") for n, _ in module.get_base_layer().named_parameters(recurse=False)}
            self._layers |= dict.fromkeys(own.values(), (module, own))

    def _on_meta(self, config: Path, auto: Any) -> dict[str, Any]:
        from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
        from peft.tuners.tuners_utils import BaseTunerLayer
        from transformers import AutoConfig

        peft_config = PeftConfig.from_pretrained(str(self._folder))
        peft_config.base_model_name_or_path = str(config)
        kind, advice = peft_config.peft_type, "Export it (luthier export RUN --to model) and merge what that gives."
        if peft_config.is_prompt_learning:
            raise UserError(f"The adapter in {self._folder} is a learned prompt ({kind}): it has no weights to merge.")
        for field in ("modules_to_save", "trainable_token_indices"):
            if getattr(peft_config, field, None):
                raise UserError(f"The adapter in {self._folder} holds whole modules of its own ({field}). {advice}")
        with torch.device("meta"):
            model = auto.from_config(AutoConfig.from_pretrained(config, local_files_only=True))
        self._head = f"{model.base_model_prefix}."
        wrapped: Any = get_peft_model(model, peft_config, low_cpu_mem_usage=True, autocast_adapter_dtype=False)
        layers: dict[str, Any] = {n: m for n, m in wrapped.base_model.model.named_modules() if isinstance(m, BaseTunerLayer)}
        for module in layers.values():
            _give_memory(module)
        if kept := [n for m in layers.values() for n, b in m.named_buffers() if b.is_meta]:
            raise UserError(f"The adapter in {self._folder} ({kind}) keeps parts that its layers share ({kept[0]}). {advice}")
        state = {n: t.float() for n, t in load_file(self._folder / ADAPTER_FILE).items()}
        result: Any = set_peft_model_state_dict(wrapped, state)
        if result.unexpected_keys:
            raise UserError(f"The adapter in {self._folder} does not fit its base: {len(result.unexpected_keys)} tensors have "
                            f"no place there (first: {result.unexpected_keys[0]}).")
        return layers

    def _stored(self, name: str) -> str:
        """A parameter's name in the base's files: a body that was saved alone, or with a head, has a prefix or has none."""
        for found in (name, self._head + name, name.removeprefix(self._head)):
            if found in self.specs:
                return found
        raise UserError(f"The adapter in {self._folder} changes {name}, which the files of its base do not hold.")

    def read(self, name: str) -> torch.Tensor:
        if name not in self._layers:
            return self._base.read(name)
        layer, own = self._layers[name]
        inner = layer.get_base_layer()
        empty = dict(inner.named_parameters(recurse=False))
        try:
            # A merge may change weight and bias together, or need one for the other: the whole layer is filled.
            for part, stored in own.items():
                setattr(inner, part, nn.Parameter(self._base.read(stored).float(), requires_grad=False))
            layer.merge(adapter_names=list(layer.active_adapters))
            merged: torch.Tensor = next(getattr(inner, part) for part, stored in own.items() if stored == name).detach()
        except (AttributeError, NotImplementedError) as error:
            raise UserError(f"The adapter in {self._folder} can't be merged into {name} ({error}).") from None
        finally:
            layer.merged_adapters.clear()
            for part, parameter in empty.items():
                setattr(inner, part, parameter)
        return merged


def _give_memory(layer: Any) -> None:
    """Room for an adapter's own parameters: they were made without, as the model was."""
    inside = {id(m) for m in layer.get_base_layer().modules()}
    for module in (m for m in layer.modules() if id(m) not in inside):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                module.register_parameter(name, nn.Parameter(torch.empty_like(parameter, device="cpu", dtype=torch.float32),
                                                             requires_grad=False))
