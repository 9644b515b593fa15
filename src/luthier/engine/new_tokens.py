"""New tokens: strings that become one token each, with rows of the embedding of which only these are trained.

The rows begin as the mean of those of the pieces that the string had before (Gee et al. 2022, "Fast Vocabulary Transfer
for Language Model Compression"). While training, a weight is [old rows; new rows; rest] put together anew for each
forward, with the old rows frozen unless the method trains them: they get no gradient and have no optimizer state. That
costs one copy of the matrix a forward; a finished or loaded model holds it in one piece again.

`new_tokens.safetensors` holds the rows, beside the tokenizer: an adapter with new tokens stays small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError

if TYPE_CHECKING:
    from luthier.engine.models import Model

FILE = "new_tokens.safetensors"


@dataclass
class NewTokens:
    """The new strings, the id of the first, and their trained rows [new, width] by the matrix they belong to."""

    strings: tuple[str, ...]
    first: int
    rows: dict[str, nn.Parameter] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The id after the last."""
        return self.first + len(self.strings)

    def whole(self, weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """[rows, width]: a matrix with the new rows in their places; further rows of a padded matrix stay."""
        return torch.cat([weight[:self.first], rows, weight[self.end:]])


class _WithRows(nn.Module):
    """A parametrization: the weight that the model computes with, from its own one and the new rows."""

    def __init__(self, new: NewTokens, name: str) -> None:
        super().__init__()
        self.rows = new.rows[name]
        self._whole = new.whole

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return self._whole(weight, self.rows)


def extend(model: Model, strings: Sequence[str]) -> Model:
    """Give a fresh model new tokens: its tokenizer reads each string as one, its embedding has rows for them.

    Raises:
        UserError: a string that is a token already, or one that can't become a token.
    """
    tokenizer = model.tokenizer
    known = tokenizer.get_vocab()
    for string in strings:
        if string in known:
            raise UserError(f"new_tokens: '{string}' is a token of {model.name} already. Leave it out.")
    pieces = [tokenizer(s, add_special_tokens=False, verbose=False)["input_ids"] for s in strings]
    new = NewTokens(tuple(strings), len(tokenizer))
    _add(model, new)
    for name, weight, modules in _matrices(model):
        start = torch.stack([weight[ids].float().mean(0) for ids in pieces]).to(weight.dtype)
        new.rows[name] = nn.Parameter(start, requires_grad=False)
        for module in modules:
            parametrize.register_parametrization(module, "weight", _WithRows(new, name), unsafe=True)
        model.module.config.vocab_size = max(new.end, weight.shape[0])
    model.new_tokens = new
    return model


def train(model: Model) -> list[nn.Parameter]:
    """Make the new rows trainable, after a method froze what it does not train; returns them."""
    rows = list(model.new_tokens.rows.values()) if model.new_tokens else []
    for parameter in rows:
        parameter.requires_grad_(True)
    return rows


def settle(model: Model) -> None:
    """Put each extended matrix together for good."""
    new = model.new_tokens
    if new is None:
        return
    for name, weight, modules in list(_matrices(model)):
        if parametrize.is_parametrized(modules[0], "weight"):
            for module in modules:
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        _set(new, weight, new.rows[name], modules)


def save(model: Model, folder: Path, kind: str) -> dict[str, Any]:
    """Write rows and tokenizer beside the weights; what the artifact's record says of them."""
    new = model.new_tokens
    if new is None:
        return {}
    model.tokenizer.save_pretrained(folder)
    if kind != "model":  # a full model has the rows in its matrices
        save_file({n: r.detach().contiguous() for n, r in new.rows.items()}, folder / FILE, metadata={"format": "pt"})
    return {"new_tokens": {"strings": list(new.strings), "first": new.first}}


def install(model: Model, artifact: Artifact) -> None:
    """Give a loaded base the tokens and rows of a tuned artifact.

    Raises:
        UserError: the rows do not fit the base.
    """
    from luthier.engine.models import load_tokenizer

    about = artifact.meta.get("new_tokens")
    if not about:
        return
    new = NewTokens(tuple(about["strings"]), about["first"])
    model.tokenizer = load_tokenizer(artifact.folder)
    model.new_tokens = new
    if artifact.kind == "model":
        return
    tensors = load_file(artifact.folder / FILE)
    for name, weight, modules in list(_matrices(model)):
        if name not in tensors or tensors[name].shape != (len(new.strings), weight.shape[1]):
            raise UserError(f"The new tokens in {artifact.folder} do not fit {model.name}: its {name} embedding is "
                            f"{weight.shape[1]} wide.")
        new.rows[name] = nn.Parameter(tensors[name].to(weight), requires_grad=False)
        model.module.config.vocab_size = max(new.end, weight.shape[0])
        _set(new, weight, new.rows[name], modules)


def _add(model: Model, new: NewTokens) -> None:
    from tokenizers import AddedToken

    model.tokenizer.add_tokens([AddedToken(s, normalized=False) for s in new.strings])
    ids = model.tokenizer.convert_tokens_to_ids(list(new.strings))
    if ids != list(range(new.first, new.end)):
        raise UserError(f"new_tokens: the tokenizer of {model.name} gave {new.strings[0]!r} and the others the ids {ids}, "
                        f"not {new.first} and the following ones.")


def _matrices(model: Model) -> Iterator[tuple[str, torch.Tensor, list[nn.Module]]]:
    """`input` and, where it is not the same, `output`: the matrix and every module that computes with it."""
    inner = model.module
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, module in (("input", inner.get_input_embeddings()), ("output", inner.get_output_embeddings())
                         if hasattr(inner, "get_output_embeddings") else ("output", None)):
        if module is not None:
            weight = _own(module)
            found.setdefault(id(weight), (name, weight))
    for name, weight in found.values():
        yield name, weight, [m for m in inner.modules() if _own(m) is weight]


def _own(module: nn.Module) -> Any:
    """A module's own weight, below any parametrization."""
    if parametrize.is_parametrized(module, "weight"):
        return module.parametrizations.weight.original  # type: ignore[union-attr]
    return module._parameters.get("weight")


def _set(new: NewTokens, weight: torch.Tensor, rows: torch.Tensor, modules: Sequence[nn.Module]) -> None:
    """One parameter for every module that shares the matrix, and their sizes."""
    whole = nn.Parameter(new.whole(weight.detach(), rows.detach()), requires_grad=weight.requires_grad)
    for module in modules:
        module.weight = whole
        for size in ("num_embeddings", "out_features"):
            if hasattr(module, size):
                setattr(module, size, whole.shape[0])
        bias = getattr(module, "bias", None)
        if bias is not None and len(bias) < whole.shape[0]:
            more = bias.detach().new_zeros(whole.shape[0] - len(bias))
            module.bias = nn.Parameter(torch.cat([bias.detach(), more]), requires_grad=bias.requires_grad)
