"""What weight rules share: one number a model, and sums of task vectors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import WeightRule

if TYPE_CHECKING:
    import torch


def each(values: Sequence[float], count: int, default: float) -> list[float]:
    """A number for each of `count` models: those given, the one given for all, or the default."""
    return list(values) * (count if len(values) == 1 else 1) or [default] * count


def at_of(values: Sequence[float], model: int) -> float:
    """The number of one model (from 0), where one may stand for all."""
    return values[model if len(values) > 1 else 0]


def numbered(name: str) -> bool:
    """Whether a tensor belongs to a numbered layer: neither an embedding nor the vocabulary head does."""
    return re.search(r"(?:^|\.)\d+\.", name) is not None and "embed" not in name.lower()


def in_layers(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is a matrix of a numbered layer: no embedding, vocabulary head, norm or bias."""
    return numbered(name) and len(shape) == 2 and not re.search(r"norm|bias", name.lower())


def cosine(one: torch.Tensor, two: torch.Tensor) -> float:
    """Of the angle between two tensors, each as one vector; 0 where one of them is zero. Products are summed in float64."""
    product, first, second = (dot(a, b) for a, b in ((one, two), (one, one), (two, two)))
    return max(-1.0, min(1.0, product / math.sqrt(first * second))) if first > 0 and second > 0 else 0.0


def dot(one: torch.Tensor, two: torch.Tensor, chunk: int = 1 << 22) -> float:
    """Inner product of two tensors, each as one vector; in float64, a chunk at a time: no float64 copy of a large tensor."""
    pieces = zip(one.reshape(-1).split(chunk), two.reshape(-1).split(chunk), strict=True)
    return sum(float(a.double() @ b.double()) for a, b in pieces)


def check_count(rule: str, field: str, values: Sequence[float], models: int, share: bool = False) -> None:
    """Refuse numbers that are neither none, nor one for all, nor one for each model; shares lie above 0, up to 1.

    Raises:
        UserError: says how they are written.
    """
    if wrong := [v for v in values if share and not 0 < v <= 1]:
        raise UserError(f"{rule}: {field} = {wrong[0]} is no share; legal are numbers above 0 and up to 1.")
    if len(values) not in (0, 1, models):
        raise UserError(f"{rule}: {field} = {list(values)} are {len(values)} numbers for {models} models. Give one for each "
                        f"model, in their order, such as {field}=[{', '.join(['0.5'] * models)}], or one for all.")


class TaskVectors(WeightRule):
    """W = W0 + scale · sum_i a_i T_i [/ what shared it], T_i = W_i - W0 as `thin` leaves it; subclasses are the rows.

    Without `elects` the divisor is sum_i a_i. With it an entry takes part only where its weighted change has the sign of the
    sum of all, and the divisor is the sum of a_i of those that take part (Yadav et al. 2023, section 3).
    """

    takes_base: ClassVar[bool] = True
    weights: tuple[float, ...] = Field((), description="a number for each model, in their order, or one for all; empty: all 1")
    scale: float = Field(1.0, description="what the sum of the changes is multiplied by (lambda)")
    normalize: bool = Field(False, description="divide by the sum of the numbers that took part")

    def check(self, models: int) -> None:
        check_count(self.info.name, "weights", self.weights, models)

    @property
    def elects(self) -> bool:
        """Whether entries take part only where their sign is the elected one."""
        return False

    def thin(self, change: torch.Tensor, name: str, model: int, stats: Any) -> torch.Tensor:
        """What is kept of the change of one tensor by one model (from 0)."""
        return change

    def apply(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any
              ) -> dict[str, torch.Tensor]:
        """In float32; a tensor that no model changed stays as it is."""
        return {name: self._sum(name, [t[name] for t in tensors], stats) for name in group}

    def _sum(self, name: str, tensors: Sequence[torch.Tensor], stats: Any) -> torch.Tensor:
        import torch

        base, numbers = tensors[0].float(), each(self.weights, len(tensors) - 1, 1.0)
        changes = [self.thin(t.float().sub(base), name, i, stats).mul_(numbers[i]) for i, t in enumerate(tensors[1:])]
        total, shared = sum(changes[1:], changes[0].clone()), torch.tensor(sum(numbers))
        if self.elects:
            way = torch.where(total >= 0, 1, -1)
            agree = [change.sign() == way for change in changes]
            total = sum((c.mul_(a) for c, a in zip(changes, agree, strict=True)), torch.zeros_like(total))
            shared = sum((a.float().mul_(n) for a, n in zip(agree, numbers, strict=True)), torch.zeros_like(total))
        if self.normalize:
            total = total / shared.masked_fill(shared.abs() < 1e-8, 1.0)
        return base + self.scale * total
