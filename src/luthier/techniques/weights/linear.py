"""linear: W = sum_i a_i W_i, divided by sum_i a_i where `normalize` is set.

W_i are the weights of the models, a_i one number each. Equal numbers give the plain average. When it helps: models tuned
from one base that stayed in one basin. Source: Wortsman et al. 2022, "Model soups", section 3 (the uniform soup).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import WeightRule
from luthier.techniques.weights._shared import check_count, each

if TYPE_CHECKING:
    import torch


class Linear(WeightRule, name="linear"):
    """The weighted average of models."""

    heads: ClassVar[Literal["merged", "kept", "dropped"]] = "merged"
    weights: tuple[float, ...] = Field((), description="a number for each model, in their order; empty: all 1")
    normalize: bool = Field(True, description="divide by the sum of the numbers")

    def check(self, models: int) -> None:
        check_count("linear", "weights", self.weights, models)
        if self.normalize and abs(sum(each(self.weights, models, 1.0))) < 1e-8:
            raise UserError(f"linear: weights = {list(self.weights)} sum to 0, by which nothing can be divided. "
                            "Set normalize=false.")

    def apply(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any
              ) -> dict[str, torch.Tensor]:
        """In float32."""
        import torch

        numbers = each(self.weights, len(tensors), 1.0)
        total = sum(numbers) if self.normalize else 1.0
        made = {}
        for name in group:
            mixed = tensors[0][name].to(torch.float32, copy=True).mul_(numbers[0] / total)
            for number, model in zip(numbers[1:], tensors[1:], strict=True):
                mixed.add_(model[name], alpha=number / total)
            made[name] = mixed
        return made
