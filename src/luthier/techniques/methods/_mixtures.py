"""Several frozen LoRA adapters in one model: they are read, checked against one another, and stacked layer by layer.

    y_t = W x_t + sum over the chosen i of w_ti s_i B_i A_i x_t,    A [N, rank, in], B [N, out, rank], s_i = alpha_i / rank_i

Who chooses i and w is a gate's business (`_gated.py` has one a token and layer). Ranks that differ are filled up with
zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from luthier.core.artifact import RECORD, Artifact, open_artifact
from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.core.run import Run
from luthier.techniques.methods._shared import linear_names

if TYPE_CHECKING:
    from luthier.engine.models import Model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = "base_model.model."
# Up to so many tokens an adapter, gathering stacks for each token is quicker than sorting tokens by adapter.
FEW = 2


def adapter_folder(method: str, name: str, place: str) -> Path:
    """The PEFT folder that a folder means: itself, or the one adapter of a run.

    Raises:
        UserError: nothing there, or no adapter, or several.
    """
    folder = Path(place).expanduser()
    if (folder / CONFIG).exists():
        return folder
    if (folder / "run.json").exists():
        run = Run.open(folder)
        found = [run.folder / "steps" / step for step in run.steps() if (run.folder / "steps" / step / CONFIG).exists()]
        if len(found) == 1:
            return found[0]
        several = f": {', '.join(map(str, found))}. Name one of these" if found else ""
        said = f"the run has {len(found)} adapters{several}"
    else:
        said = f"it has no {CONFIG}" if folder.exists() else "it does not exist"
    raise UserError(f"{method}: adapter '{name}' is {place}, but {said}. Give a folder that PEFT or a run with --method lora "
                    "left.")


@dataclass(frozen=True)
class Source:
    """One LoRA as it lies in its folder."""

    name: str
    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """PEFT's settings."""
        found: dict[str, Any] = read_json(self.folder / CONFIG)
        return found

    @property
    def base(self) -> str:
        """What it was trained on: the base's identity where a record says it, else the name that PEFT wrote down."""
        if (self.folder / RECORD).exists():
            return str(open_artifact(self.folder).meta["base"]["identity"])
        return str(self.config.get("base_model_name_or_path"))

    @property
    def recorded(self) -> bool:
        """Whether `base` is an identity, which can be compared with the loaded base."""
        return (self.folder / RECORD).exists()

    @cached_property
    def factors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """A [rank, in] and B [out, rank] by layer, in the order of the file."""
        tensors = load_file(self.folder / WEIGHTS)
        downs = [k for k in tensors if k.endswith(".lora_A.weight")]
        return {k.removeprefix(_KEY).removesuffix(".lora_A.weight"): (tensors[k], tensors[k.replace("lora_A", "lora_B")])
                for k in sorted(downs)}

    def scale(self, layer: str) -> float:
        """alpha / rank of a layer, as PEFT reads its patterns."""
        from peft.utils.other import get_pattern_key

        config, rank = self.config, len(self.factors[layer][0])
        alphas: dict[str, float] = config.get("alpha_pattern") or {}
        alpha = float(alphas.get(get_pattern_key(list(alphas), layer), config["lora_alpha"]))
        return alpha / (rank ** 0.5 if config.get("use_rslora") else rank)

    def refuse_unknown(self, method: str) -> None:
        """Raises UserError for an adapter that is more than A and B."""
        config = self.config
        strange = [f"peft_type is {config.get('peft_type')}"] if config.get("peft_type") != "LORA" else \
            [f"{key} is {config[key]}" for key in ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices")
             if config.get(key)] + ([f"bias is {config['bias']}"] if config.get("bias", "none") != "none" else [])
        if strange:
            raise UserError(f"{method}: adapter '{self.name}' ({self.folder}) is not plain LoRA: {', '.join(strange)}. "
                            "Give adapters of --method lora.")


def read(method: str, places: Mapping[str, str], inputs: Mapping[str, Artifact] = {}) -> list[Source]:
    """The adapters by name; a place is an input of the training, or a folder.

    Raises:
        UserError: a place that is neither, an adapter that is not plain LoRA, or adapters that don't belong together.
    """
    sources = []
    for name, place in places.items():
        if place in inputs and inputs[place].kind != "adapter":
            raise UserError(f"{method}: adapter '{name}' is the input '{place}', a {inputs[place].kind} and no adapter.")
        sources.append(Source(name, inputs[place].folder if place in inputs else adapter_folder(method, name, place)))
        sources[-1].refuse_unknown(method)
    first = sources[0]
    for other in sources[1:]:
        if other.base != first.base:
            raise UserError(f"{method}: '{first.name}' was trained on the base {first.base[:40]}, '{other.name}' on "
                            f"{other.base[:40]}. All adapters must have one base.")
        differing = [f"{len(only)} only in '{a.name}' (such as {min(only)})" for a, b in ((first, other), (other, first))
                     if (only := set(a.factors) - set(b.factors))]
        if differing:
            raise UserError(f"{method}: adapters have other target layers: {'; '.join(differing)}. Train all with one target.")
    return sources


def require_fit(method: str, sources: Sequence[Source], model: Model, pad_ranks: bool) -> int:
    """The rank of the stack, the highest there is.

    Raises:
        UserError: adapters of another base, layers or sizes that the model does not have, or ranks that differ and are not to
            be filled up.
    """
    layers = linear_names(model)
    for source in sources:
        if source.recorded and source.base != model.base.identity:
            raise UserError(f"{method}: adapter '{source.name}' was trained on the base {source.base[:8]}, not on {model.name} "
                            f"({model.base.identity[:8]}).")
        for layer, (down, up) in source.factors.items():
            if layers.get(layer) != (down.shape[1], up.shape[0]):
                there = f"is {layers[layer][0]} by {layers[layer][1]}" if layer in layers else "is not there"
                raise UserError(f"{method}: adapter '{source.name}' changes {layer} ({down.shape[1]} by {up.shape[0]}), which "
                                f"{there} in {model.name}. It belongs to another base.")
    ranks = {s.name: sorted({len(down) for down, _ in s.factors.values()}) for s in sources}
    if len({tuple(r) for r in ranks.values()}) > 1 and not pad_ranks:
        told = ", ".join(f"'{n}' {'/'.join(map(str, r))}" for n, r in ranks.items())
        raise UserError(f"{method}: ranks differ: {told}. Set pad_ranks=true to fill the lower ones up with zeros: they then "
                        "cost as much as the highest.")
    return max(max(r) for r in ranks.values())


class Stack(nn.Module):
    """The updates of one layer side by side: A [N, rank, in], B [N, out, rank], scale [N]; frozen unless `trained`."""

    A: torch.Tensor
    B: torch.Tensor
    scale: torch.Tensor

    def __init__(self, adapters: int, rank: int, sizes: tuple[int, int], like: torch.Tensor, trained: bool = False) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        for name, shape in (("A", (adapters, rank, sizes[0])), ("B", (adapters, sizes[1], rank))):
            zeros = torch.zeros(shape, **options)
            if trained:
                self.register_parameter(name, nn.Parameter(zeros))
            else:
                self.register_buffer(name, zeros)
        self.register_buffer("scale", torch.zeros(adapters, device=like.device, dtype=torch.float32))

    @torch.no_grad()
    def fill(self, layer: str, sources: Sequence[Source]) -> None:
        """Take the adapters' own tensors; what a lower rank leaves stays zero."""
        for i, source in enumerate(sources):
            down, up = source.factors[layer]
            self.A[i, :len(down)], self.B[i, :, :up.shape[1]] = down.to(self.A), up.to(self.B)
            self.scale[i] = source.scale(layer)

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """[tokens, out] from x [tokens, in], chosen adapters [tokens, k] and their weights [tokens, k]."""
        few = not torch.is_grad_enabled() and len(x) <= FEW * len(self.scale)
        return self.gathered(x, chosen, weights) if few else self.grouped(x, chosen, weights)

    def grouped(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Tokens sorted by adapter: two small products an adapter, for many tokens."""
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        token = order // chosen.shape[1]
        sizes = flat.bincount(minlength=len(self.scale)).tolist()
        parts = [rows @ self.A[i].T @ self.B[i].T for i, rows in enumerate(x[token].split(sizes))]
        factor = (weights * self.scale[chosen]).flatten()[order, None].to(x.dtype)
        return x.new_zeros(len(x), self.B.shape[1]).index_add(0, token, torch.cat(parts) * factor)

    def gathered(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Each token with stacks of its own, in two batched products: for few tokens."""
        flat, k = chosen.flatten(), chosen.shape[1]
        rows = x.repeat_interleave(k, 0)[:, :, None]
        each = torch.bmm(self.B[flat], torch.bmm(self.A[flat], rows))[:, :, 0].view(len(x), k, -1)
        return (each * (weights * self.scale[chosen])[:, :, None].to(x.dtype)).sum(1)
