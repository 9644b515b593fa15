"""apply-graft: one or several grafts on their base; an entry that none of them names keeps the base's value.

Where two grafts change one entry to different values, `conflict` decides: an error, the last one named, or the base plus the
sum of both changes. Source: Panigrahi et al. 2023, section 5.2 (unions of grafts; seed 59).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import WeightRule

if TYPE_CHECKING:
    import torch


class ApplyGraft(WeightRule, name="apply-graft", seeds=[59]):
    """The union of what several sparse deltas change."""

    takes_base: ClassVar[bool] = True
    conflict: Literal["error", "last", "sum"] = Field("error", description="what holds for an entry that two grafts change "
                                                                           "differently")

    def apply(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any
              ) -> dict[str, torch.Tensor]:
        """Bit for bit the values of the grafts, except for sums.

        Raises:
            UserError: two grafts want different values, and `conflict` is error.
        """
        return {name: self._union(name, [t[name] for t in tensors]) for name in group}

    def _union(self, name: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        import torch

        base, made = tensors[0], tensors[0].clone()
        taken = torch.zeros_like(base, dtype=torch.bool)
        for number, tensor in enumerate(tensors[1:], 1):
            changed = tensor != base
            both = changed & taken & (tensor != made)
            if self.conflict == "error" and both.any():
                raise UserError(f"{name}: {int(both.sum())} entries of graft {number} are changed to other values by an "
                                "earlier one. Choose with conflict=last or conflict=sum.")
            alone = torch.where(changed, tensor.to(made.dtype), made)
            summed = (made.float() + tensor.float() - base.float()).to(made.dtype)
            made = torch.where(both, summed, alone) if self.conflict == "sum" else alone
            taken |= changed
        return made
