"""Cut models: linear layers of a base of which some rows (outputs) and columns (inputs) are left.

Which are kept is all that an artifact stores of it (`pruned.safetensors`, NAME:rows and NAME:columns): any copy of the base is
cut again when the artifact is put on it. Heads may differ from layer to layer, which no configuration can say, so that such a
model is not exported as an ordinary one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from luthier.core.errors import UserError

if TYPE_CHECKING:
    from luthier.core.artifact import Artifact
    from luthier.engine.models import Model

FILE = "pruned.safetensors"


@dataclass(frozen=True)
class Kept:
    """Rows and columns of one layer's [out, in] that are left, ascending; all of them where it is none."""

    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """What is left of a matrix [out, in]."""
        for dim, kept in ((0, self.rows), (1, self.columns)):
            if kept is not None:
                weight = weight.index_select(dim, kept.to(weight.device))
        return weight


@dataclass
class Pruned:
    """What is left of each layer that was cut, by its name in the base."""

    layers: dict[str, Kept] = field(default_factory=dict)

    def cut(self, model: Model) -> None:
        """Cut a model that has the base's shapes, with or without an adapter around its layers; others keep what they share.

        Raises:
            UserError: a layer has no place in this model.
        """
        own = dict(model.module.named_modules())
        for name, kept in self.layers.items():
            place = next((p for p in (f"base_model.model.{name}.base_layer", f"base_model.model.{name}", name) if p in own), "")
            was = own.get(place)
            ends = [int(k.max()) if k is not None and len(k) else -1 for k in (kept.rows, kept.columns)]
            if not isinstance(was, nn.Linear) or any(e >= size for e, size in zip(ends, was.weight.shape, strict=True)):
                raise UserError(f"What is left of '{name}' does not fit {model.name}: it has no such layer.")
            parent, _, last = place.rpartition(".")
            setattr(model.module.get_submodule(parent), last, _cut(was, kept))
        model.pruned = self

    def numbers(self, model: Model) -> int:
        """How many weights are left in the layers that were cut."""
        return sum(kept.of(model.module.get_submodule(n).weight.detach()).numel() for n, kept in self.layers.items())

    def save(self, path: Path) -> None:
        """Write the file, or none if this is interrupted."""
        tensors = {f"{n}:{part}": t for n, kept in self.layers.items()
                   for part, t in (("rows", kept.rows), ("columns", kept.columns)) if t is not None}
        work = path.with_suffix(".part")
        save_file({n: t.clone() for n, t in tensors.items()}, work, metadata={"format": "pt"})  # layers share their lists
        os.replace(work, path)

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Pruned:
        """The inverse of what `save` writes."""
        names = sorted({n.rpartition(":")[0] for n in tensors})
        return cls({n: Kept(tensors.get(f"{n}:rows"), tensors.get(f"{n}:columns")) for n in names})


def _cut(was: nn.Linear, kept: Kept) -> nn.Linear:
    weight = kept.of(was.weight.detach())
    now = nn.Linear(weight.shape[1], weight.shape[0], bias=was.bias is not None, device="meta")
    now.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if was.bias is not None:
        bias = was.bias.detach()
        now.bias = nn.Parameter(bias if kept.rows is None else bias[kept.rows.to(bias.device)], requires_grad=False)
    return now.train(was.training)


def save(model: Model, folder: Path) -> dict[str, Any]:
    """Write what an artifact needs of its cut base; what the artifact's record says of it."""
    if model.pruned is None:
        return {}
    model.pruned.save(folder / FILE)
    return {"pruned": {"layers": len(model.pruned.layers)}}


def install(model: Model, artifact: Artifact) -> None:
    """Cut a loaded base as that of a tuned artifact was."""
    if "pruned" in artifact.meta:
        Pruned.of(load_file(artifact.folder / FILE)).cut(model)


def refuse(folder: Path) -> None:
    """Raises UserError where weights would be read tensor by tensor from a base and an artifact beside it."""
    if (folder / FILE).exists():
        raise UserError(f"What is in {folder} stands on a base of which parts were cut off. Its layers differ in their numbers "
                        "of heads and neurons, which no ordinary model's do; luthier evaluate, ask, chat and serve use it.")
