"""ranked-lora: LoRA whose ranks come from an earlier search, or as many of them dealt evenly or by chance.

An update is scaled by `alpha` over its layer's own rank, whoever chose the rank. What is left is an ordinary LoRA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.core.kinds import Default, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._shared import require_rank, targeted, wrap

if TYPE_CHECKING:
    from luthier.engine.models import Model

RANKS = "ranks.json"


class RankedLora(Method, name="ranked-lora"):
    """LoRA with a rank of its own for each layer, as many in all as a search found."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "adapter"
    of: str = Field("", description="the input that searched (autolora); empty: `rank` everywhere")
    how: Literal["found", "even", "random"] = Field("found", description="as found, even, or dealt by chance")
    rank: int = Field(8, ge=1, description="rank of each layer where nothing was searched")
    alpha: float = Field(16, gt=0, description="the update is scaled by alpha / rank")
    target: str | tuple[str, ...] = Field("attention-qv", description="all-linear, attention-qv, or names of layers")

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        """Raises UserError for an input without ranks, or one whose layers are others."""
        from peft import LoraConfig

        targets = targeted("ranked-lora", model, self.target)
        ranks = self._ranks(list(targets), ctx) if self.of else dict.fromkeys(targets, self.rank)
        top = max(ranks.values())
        require_rank("ranked-lora", top, targets)
        return wrap(model, LoraConfig(
            r=top, lora_alpha=self.alpha,  # type: ignore[arg-type]
            target_modules=[n for n, r in ranks.items() if r], rank_pattern={n: r for n, r in ranks.items() if 0 < r < top}))

    def _ranks(self, layers: list[str], ctx: FitCtx) -> dict[str, int]:
        if self.of not in ctx.inputs or not (ctx.inputs[self.of].folder / RANKS).exists():
            raise UserError(f"ranked-lora: of = {self.of!r} is no input with ranks; inputs: {', '.join(ctx.inputs)}.")
        told = read_json(ctx.inputs[self.of].folder / RANKS)
        if set(told) != set(layers):
            raise UserError(f"ranked-lora: '{self.of}' has ranks for {len(told)} layers ({next(iter(told))}, ...); here are "
                            f"{len(layers)} ({layers[0]}, ...). Name the same target.")
        found = {name: int(told[name]["rank"]) for name in layers}
        if self.how == "found":
            return found
        most = max(len(entry["selection"]) for entry in told.values())
        return dealt(layers, sum(found.values()), most if self.how == "random" else 0, ctx.rng("ranked-lora"))

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(5e-4, "Hu et al. 2021, RoBERTa: 4e-4 to 5e-4")}


def dealt(layers: list[str], total: int, most: int, draw: np.random.Generator) -> dict[str, int]:
    """`total` ranks over layers: one each first, then to layers by chance up to `most`; or, where this is 0, evenly."""
    least = 1 if most and total >= len(layers) else 0 if most else total // len(layers)
    ranks = dict.fromkeys(layers, least)
    for _ in range(total - least * len(layers)):
        open_ = [n for n in layers if ranks[n] < (most or least + 1)]
        ranks[open_[int(draw.integers(len(open_)))]] += 1
    return ranks
