"""model-stock: W = t · mean_i W_i + (1 - t) W_0 with t = N c / (1 + (N - 1) c), tensor by tensor.

W_0 are the base's weights, W_1 … W_N those of N tunes of it that differ in their seed, c the mean cosine over all pairs of
changes W_i - W_0. Where tunes lie on a thin shell around a centre and their noise is orthogonal, W is the point of the plane
through them and the base that is nearest to the centre. c below 0 counts as 0: the base stays. A head that was random at the
start has no meaningful W_0: leave such models out.

When it helps: two or three tunes of one recipe in place of an average of dozens. Source: Jang, Yun, Han 2024, "Model stock: all
we need is just a few fine-tuned models", section 4 (seed 29).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import WeightRule
from luthier.techniques.weights._shared import dot

if TYPE_CHECKING:
    import torch

    from luthier.core.step import Ctx

WIDE = 100.0  # degrees between changes from which on the base is hardly their ancestor
Pairs = dict[tuple[int, int], float]


def ratio(cosine: float, models: int) -> float:
    """t of `models` tunes whose changes have this cosine; 0 for a cosine below 0."""
    c = max(0.0, min(1.0, cosine))
    return models * c / (1 + (models - 1) * c)


class ModelStock(WeightRule, name="model-stock", seeds=[29]):
    """The point nearest to the centre of the tunes, on the plane through them and the base."""

    takes_base: ClassVar[bool] = True
    models: ClassVar[tuple[int, int]] = (2, 1 << 16)
    granularity: Literal["tensor", "block", "model"] = Field("tensor", description="what has an angle of its own: a tensor, "
                                                             "the tensors of a numbered layer, or the whole model")

    def statistics(self, ctx: Ctx) -> dict[str, float]:
        """The mean cosine of each unit, by the unit's name.

        Raises:
            UserError: one model is the base itself while others differ from it.
        """
        products: dict[str, Pairs] = {}
        whole: Pairs = {}
        for group, tensors in ctx.stream("weights"):
            for name in group:
                found = _products([t[name] for t in tensors])
                for sums in (products.setdefault(self._unit(name), {}), whole):
                    for pair, value in found.items():
                        sums[pair] = sums.get(pair, 0.0) + value
        count = 1 + max(i for i, _ in whole)
        still = [i + 1 for i in range(count) if whole[i, i] == 0]
        if still and len(still) < count:
            raise UserError(f"model-stock: model {still[0]} is the base itself: its change has no angle with the others'. "
                            "Leave it out.")
        cosines = {unit: _mean_cosine(sums, count) for unit, sums in products.items()}
        wide = [u for u, c in cosines.items() if math.degrees(math.acos(c)) > WIDE]
        if wide:
            ctx.log(f"{len(wide)} of {len(cosines)} units have changes more than {WIDE:g} degrees apart (first: {wide[0]}); is "
                    "the base the one that all models were tuned from?")
        return cosines

    def _unit(self, name: str) -> str:
        if self.granularity == "model":
            return "model"
        block = re.match(r".*?\.\d+(?=\.)", name) if self.granularity == "block" else None
        return block.group() if block else name

    def apply(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Mapping[str, float]
              ) -> dict[str, torch.Tensor]:
        """In float32; a tensor that no model changed stays as it is."""
        return {name: self._point(stats[self._unit(name)], [t[name] for t in tensors]) for name in group}

    @staticmethod
    def _point(cosine: float, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        base, share = tensors[0].float(), ratio(cosine, len(tensors) - 1) / (len(tensors) - 1)
        moved = base.clone()
        for tensor in tensors[1:]:
            moved.add_(tensor.float().sub(base), alpha=share)
        return moved

    def facts(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Mapping[str, float]
              ) -> dict[str, Any]:
        """Angle between the changes in degrees, and t."""
        cosine = stats[self._unit(group[0])]
        return {"degrees": round(math.degrees(math.acos(cosine)), 3), "t": round(ratio(cosine, len(tensors) - 1), 6)}


def _products(tensors: Sequence[torch.Tensor]) -> Pairs:
    """Inner products of the changes of every two models (from 0), and of each with itself."""
    base = tensors[0].float()
    changes = [t.float().sub(base) for t in tensors[1:]]
    every: Iterable[tuple[int, int]] = [*combinations(range(len(changes)), 2), *((i, i) for i in range(len(changes)))]
    return {(i, j): dot(changes[i], changes[j]) for i, j in every}


def _mean_cosine(sums: Pairs, count: int) -> float:
    """Over all pairs; 0 for a pair of which one did not change."""
    found = [max(-1.0, min(1.0, sums[i, j] / scale)) if (scale := math.sqrt(sums[i, i] * sums[j, j])) > 0 else 0.0
             for i, j in combinations(range(count), 2)]
    return sum(found) / len(found)
