"""antidote: W' = (1 - M) W, M = 1 for the weights of each row that matter most for harmful answers.

Score h_ij = |W_ij| ||X_j||, X_j what enters column j over all tokens of the harmful rows, measured on the unpruned model. Of
each row of W [out, in] the in - int(in (1 - ratio)) largest scores go to zero: the largest, unlike in ordinary pruning. With
scope lora the rows are those of the adapter's own A [rank, in] and B [out, rank], and the result is an adapter; the other
scopes prune full weights. The other scores are controls: magnitude |W|, gradient |W ∂L/∂W| (largest of the whole tensor),
random.

When it helps: a tune that broke what alignment had taught, repaired without training; it undoes part of any tune, so compare at
equal task accuracy and look at the audit refusals: the result is not safe because it was pruned. Source: Huang et al. 2024,
"Antidote: post-fine-tuning safety alignment for large language models", section 4 (seed 147).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.identity import hash_file
from luthier.core.kinds import Objective, WeightRule
from luthier.techniques.weights._rows import Asked, read_pairs
from luthier.techniques.weights._shared import in_layers

if TYPE_CHECKING:
    import torch

    from luthier.core.step import Ctx

ATTENTION = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query", "key", "value", "query_key_value", "q", "k", "v")
FEW_TOKENS = 2000


class Antidote(WeightRule, name="antidote", seeds=[147]):
    """Set to zero what harmful answers need most."""

    models: ClassVar[tuple[int, int]] = (1, 1)
    data: str = Field("", description="JSON lines with question and answer that break the policy; for wanda and gradient")
    ratio: float = Field(0.1, ge=0, lt=1, description="share of each row that is set to zero, rounded up")
    scope: Literal["lora", "qkv", "all-linear"] = Field("lora", description="the adapter's matrices, the projections of "
                                                        "queries, keys and values, or all matrices of layers")
    score: Literal["wanda", "magnitude", "gradient", "random"] = Field("wanda", description="what a weight is chosen by")
    objective: Slot[Objective] = Field(named("supervised"), description="whose loss and inputs are measured on the data")
    max_tokens: int = Field(512, ge=8, description="longest row in tokens")

    @property
    def reads(self) -> Literal["weights", "adapter"]:
        return "adapter" if self.scope == "lora" else "weights"

    @property
    def _measures(self) -> bool:
        return self.score in ("wanda", "gradient")

    @property
    def roles(self) -> tuple[str, ...]:
        return ("model",) if self._measures else ()

    def check(self, models: int) -> None:
        if self._measures and not self.data:
            raise UserError(f"antidote: score = {self.score} needs harmful rows: data=FILE. Without any: score=magnitude.")
        if self.data and not self._measures:
            raise UserError(f"antidote: score = {self.score} reads no rows. Leave out data, or set score=wanda.")
        if self.data:
            read_pairs(self.data, "antidote", "data")

    def content(self) -> dict[str, Any]:
        return {"data": hash_file(Path(self.data).expanduser())} if self.data else {}

    def statistics(self, ctx: Ctx) -> dict[str, Any]:
        """Norms of what enters each matrix [in], or gradients [out, in], by name; and the generators of random masks.

        Raises:
            UserError: no matrix of the scope, or one that no row reached.
        """
        sizes = {g[0]: t[0][g[0]].shape for g, t in ctx.stream("weights")}
        names = [n for n, shape in sizes.items() if self.covers(n, shape)]
        if not names:
            raise UserError(f"antidote: scope = {self.scope} has no matrix in this model (first tensor: {next(iter(sizes))}). "
                            + ("Only LoRA adapters have such a scope; set scope=all-linear." if self.scope == "lora"
                               else "Set scope=all-linear."))
        measured = self._measure(ctx, names) if self._measures else {}
        if lost := [n for n in names if self._measures and n not in measured]:
            raise UserError(f"antidote: no row reached {lost[0]}; it can't be scored by {self.score}.")
        ctx.log("pruning is no proof of safety: look at the result with luthier audit OUT --base BASE --audit refusals")
        return {"names": set(names), "measured": measured, "rng": ctx.rng.within("antidote")}

    def covers(self, name: str, shape: Sequence[int]) -> bool:
        """Whether a tensor of the files is pruned."""
        if self.scope == "lora":
            return name.endswith((".lora_A.weight", ".lora_B.weight"))
        return in_layers(name, shape) and (self.scope == "all-linear" or name.split(".")[-2] in ATTENTION)

    def _measure(self, ctx: Ctx, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """From the loaded model, row after row, so that nothing is padded."""
        import torch

        model = ctx.roles["model"]
        if self.scope != "lora" and hasattr(model.module, "merge_and_unload"):
            model.module = model.module.merge_and_unload()
        layers = {stored: layer for path, layer in model.module.named_modules() if isinstance(layer, torch.nn.Linear)
                  and (stored := f"{path.removesuffix('.default')}.weight") in set(names)}
        asked = Asked(model, read_pairs(self.data, "antidote", "data"), self.objective, ctx.rng, 1, self.max_tokens)
        if self.score == "gradient":
            return _gradients(layers, asked)
        sums, tokens = squares(layers, asked)
        if tokens < FEW_TOKENS:
            ctx.log(f"the harmful rows have {tokens} tokens; scores from fewer than {FEW_TOKENS} are rough")
        return {n: s.sqrt() for n, s in sums.items()}

    def apply(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any
              ) -> dict[str, torch.Tensor]:
        """Other tensors, and everything where the ratio is 0, stay as they are."""
        name, weight = group[0], tensors[0][group[0]]
        if name not in stats["names"] or self.ratio == 0:
            return {name: weight}
        return {name: weight.masked_fill(self._mask(name, weight.float(), stats), 0.0)}

    def _mask(self, name: str, weight: torch.Tensor, stats: Any) -> torch.Tensor:
        import torch

        rows, columns = weight.shape
        count = columns - int(columns * (1 - self.ratio))
        if self.score == "random":
            scores = torch.from_numpy(stats["rng"]("mask", name).random(weight.numel(), dtype="float32"))
        elif self.score == "gradient":
            scores = (weight * stats["measured"][name]).abs().reshape(-1)
        else:
            scores = weight.abs() * (stats["measured"][name] if self.score == "wanda" else 1.0)
        whole = scores.dim() == 1
        places = scores.topk(rows * count if whole else count, dim=-1).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, places, True).reshape(weight.shape)

    def facts(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any) -> dict[str, Any]:
        """The share really set to zero: of few columns even a small ratio takes a whole one."""
        if group[0] not in stats["names"]:
            return {}
        columns = tensors[0][group[0]].shape[1]
        return {"zeroed": (columns - int(columns * (1 - self.ratio))) / columns if self.ratio else 0.0}


def squares(layers: Mapping[str, torch.nn.Linear], asked: Asked) -> tuple[dict[str, torch.Tensor], int]:
    """Mean over rows of the sum over tokens of x_j², [in] of each layer; and how many tokens entered the first layer."""
    import torch

    sums: dict[str, torch.Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def watch(name: str) -> Any:
        def add(module: Any, inputs: Any) -> None:
            x = inputs[0].detach().float().reshape(-1, inputs[0].shape[-1])
            sums[name] = sums.get(name, torch.zeros(x.shape[1])) + x.square().sum(0)
            counts[name] += len(x)

        return add

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for batch in asked.batches:
                asked.loss(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {n: s / len(asked.batches) for n, s in sums.items()}, max(counts.values(), default=0)


def _gradients(layers: Mapping[str, torch.nn.Linear], asked: Asked) -> dict[str, torch.Tensor]:
    """Of the mean loss over rows, [out, in] of each layer."""
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    for batch in asked.batches:
        (asked.loss(batch) / len(asked.batches)).backward()  # type: ignore[no-untyped-call]
    return {n: layer.weight.grad for n, layer in layers.items() if layer.weight.grad is not None}
