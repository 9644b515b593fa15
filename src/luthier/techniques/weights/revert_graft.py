"""revert-graft: a grafted model without its graft, bit for bit the base: the graft keeps the base's own values.

Source: Panigrahi et al. 2023, section 5.3 (a skill that can be taken out again; seed 59).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.identity import hash_file
from luthier.core.kinds import WeightRule

if TYPE_CHECKING:
    import torch

    from luthier.core.step import Ctx


class RevertGraft(WeightRule, name="revert-graft", seeds=[59]):
    """Put the base's values back where a graft changed them."""

    models: ClassVar[tuple[int, int]] = (1, 1)
    graft: str = Field(examples=["skill.graft"], description="folder of the graft that was applied")

    @property
    def _file(self) -> Path:
        return Path(self.graft).expanduser() / "delta.safetensors"

    def check(self, models: int) -> None:
        if not self._file.is_file():
            raise UserError(f"revert-graft: graft = {self.graft!r} holds no delta.safetensors. Name the folder of a graft.")

    def content(self) -> dict[str, Any]:
        return {"graft": hash_file(self._file)}

    def statistics(self, ctx: Ctx) -> Any:
        """The graft's file, opened."""
        from luthier.engine.deltas import Delta

        delta = Delta(self._file.parent)
        if lost := [n for n, codes in delta.parts.items() if "was" not in codes]:
            raise UserError(f"revert-graft: {self.graft} does not keep what {lost[0]} was; what --rule graft makes does.")
        return delta

    def apply(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any
              ) -> dict[str, torch.Tensor]:
        """The base's values where the graft stands.

        Raises:
            UserError: the model does not hold the graft's values, so that it is not the grafted one.
        """
        return {name: self._before(name, tensors[0][name], stats) for name in group}

    def _before(self, name: str, tensor: torch.Tensor, delta: Any) -> torch.Tensor:
        import torch

        if name not in delta.parts:
            return tensor
        part, flat = delta.part(name), tensor.clone().reshape(-1)
        if not torch.equal(flat[part["at"]], part["values"].to(flat.dtype)):
            raise UserError(f"revert-graft: {name} does not hold the values of {self.graft}; it was changed after the graft, "
                            "or never had it.")
        flat[part["at"]] = part["was"].to(flat.dtype)
        return flat.reshape(tensor.shape)
