"""slerp: W = sin((1-t)Ω)/sin Ω · W_1 + sin(tΩ)/sin Ω · W_2, where Ω is the angle between the two tensors, each as one vector.

t = 0 gives the first model, 1 the second. Where |cos Ω| is above `straight` the sine is too small to divide by and the average
(1-t) W_1 + t W_2 is taken. When it helps: two models whose average would lose length. Source: Shoemake 1985, "Animating
rotation with quaternion curves".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.core.kinds import WeightRule
from luthier.techniques.weights._shared import cosine

if TYPE_CHECKING:
    import torch


class Slerp(WeightRule, name="slerp"):
    """The point on the arc between two models."""

    models: ClassVar[tuple[int, int]] = (2, 2)
    t: float = Field(0.5, ge=0, le=1, description="where on the arc: 0 is the first model, 1 the second")
    straight: float = Field(0.9995, gt=0, lt=1, description="cosine from which on the arc counts as a line")

    def apply(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any
              ) -> dict[str, torch.Tensor]:
        """Angles in float64, sums in float32."""
        made = {}
        for name in group:
            one, two = (t[name].float() for t in tensors)
            first, second = self._parts(self._angle(one, two))
            made[name] = one.mul(first).add_(two, alpha=second)
        return made

    def facts(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any) -> dict[str, Any]:
        """The angle in degrees."""
        return {"degrees": round(math.degrees(self._angle(*(t[group[0]].float() for t in tensors))), 3)}

    @staticmethod
    def _angle(one: torch.Tensor, two: torch.Tensor) -> float:
        """In radians; a right angle where one of them is zero."""
        return math.acos(cosine(one, two))

    def _parts(self, angle: float) -> tuple[float, float]:
        if abs(math.cos(angle)) > self.straight:
            return 1 - self.t, self.t
        return math.sin((1 - self.t) * angle) / math.sin(angle), math.sin(self.t * angle) / math.sin(angle)
