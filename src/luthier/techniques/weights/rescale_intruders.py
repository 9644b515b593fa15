"""rescale-intruders: W(factor) = W + (factor - 1) sum_j s_j u_j v_j^T over the intruders j of each tuned matrix.

u_j, s_j, v_j are the singular vectors and values of the tuned W [out, in]; j is an intruder when it is among the k largest
and less similar than eps to every singular vector of the base's W0 (see the audit intruder-dimensions). factor 1 leaves
every bit, 0 takes intruders out. `control` scales as many of the leading directions that are no intruders instead: what
any direction would do. The first model is the base, the second the tuned one.

When it helps: a model that forgot; a factor below 1 brought most of it back at little cost of the task. Source: Shuttleworth
et al. 2024, "LoRA vs full fine-tuning: an illusion of equivalence", section 5 (seed 96).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import WeightRule

if TYPE_CHECKING:
    import torch


class RescaleIntruders(WeightRule, name="rescale-intruders", seeds=[96]):
    """Scale what tuning added along directions that the base did not have."""

    takes_base: ClassVar[bool] = True
    models: ClassVar[tuple[int, int]] = (1, 1)
    factor: float = Field(0.7, ge=0, description="what the intruders' singular values are multiplied by; 1 changes nothing")
    k: int = Field(10, ge=1, description="leading singular vectors of each matrix that are looked at")
    eps: float = Field(0.5, gt=0, description="a vector less similar than this to every one of the base is an intruder")
    side: Literal["left", "right", "both"] = Field("left", description="which singular vectors are compared")
    choose: Literal["intruders", "control"] = Field("intruders", description="what is scaled: the intruders, or as many of "
                                                    "the other leading directions")

    def apply(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any
              ) -> dict[str, torch.Tensor]:
        """Tensors that are no matrices, or that tuning left alone, stay as they are.

        Raises:
            UserError: not two models, shapes that differ, or k above the smaller side of a changed matrix.
        """
        if len(tensors) != 2:
            raise UserError(f"rescale-intruders takes two models, the base and the tuned one; found {len(tensors)}.")
        return {name: self._matrix(name, tensors[0][name], tensors[1][name]) for name in group}

    def _matrix(self, name: str, base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
        import torch

        from luthier.engine.spectra import Spectrum, rescaled

        if base.shape != tuned.shape:
            raise UserError(f"{name} is {tuple(base.shape)} in the base and {tuple(tuned.shape)} in the tuned model. "
                            "Name the base that it was tuned from.")
        if tuned.dim() != 2 or torch.equal(base, tuned):
            return tuned
        if self.k > min(tuned.shape):
            raise UserError(f"rescale-intruders: k = {self.k} is above {min(tuned.shape)}, the smaller side of {name}.")
        spectrum = Spectrum.of(tuned)
        similarity = spectrum.similarity(Spectrum.of(base), self.k, self.side)
        intruders = (similarity < self.eps).nonzero()[:, 0]
        if self.choose == "control":
            intruders = (similarity >= self.eps).nonzero()[:, 0][:len(intruders)]
        return rescaled(tuned, spectrum, intruders, self.factor)
