"""low-rank: W ≈ W0 + U_r Σ_r V_r^T: the r largest singular values of what a full tune changed in each matrix.

D = W - W0 [out, in] = U Σ V^T; no matrix of rank r is nearer to D in the Frobenius norm. Kept are U_r Σ_r^½ and Σ_r^½ V_r^T in
bfloat16. Cut are the matrices of numbered layers; all else that changed is kept whole. Without a rank, r is as large as `bits`
bits a weight allow: r = bits · out · in / (16 (out + in)), at least 1.

When it helps: many full tunes of one base whose changes are of low rank, as those of short tunes are; else bitdelta keeps more
at equal bytes. Sources: Eckart and Young 1936; as a baseline Liu et al. 2024, "BitDelta: your fine-tune may only be worth one
bit", section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import WeightRule
from luthier.techniques.weights._shared import in_layers

if TYPE_CHECKING:
    import torch

    from luthier.core.step import Ctx
    from luthier.engine.tensors import Spec


class LowRank(WeightRule, name="low-rank"):
    """A full tune as factors on its base."""

    takes_base: ClassVar[bool] = True
    models: ClassVar[tuple[int, int]] = (1, 1)
    rank: int = Field(0, ge=0, description="singular values that are kept of each matrix, at most all; 0: what `bits` allow")
    bits: float = Field(1.0, gt=0, le=16, description="bits a weight that the factors of a matrix may take where rank is 0")

    @property
    def leaves(self) -> Literal["model", "adapter", "delta"]:
        return "delta"

    def statistics(self, ctx: Ctx) -> dict[str, int | None]:
        """Of each tensor that changed: the rank that is kept, or None where it is kept whole.

        Raises:
            UserError: changes that are not finite, or none in any layer.
        """
        import torch

        from luthier.engine.weight_executor import finite

        ranks: dict[str, int | None] = {}
        for group, (base, tuned) in ctx.stream("weights"):
            name = group[0]
            if torch.equal(base[name], tuned[name]):
                continue
            ranks[name] = self.rank_of(base[name].shape) if in_layers(name, base[name].shape) else None
            if ranks[name] and not finite(tuned[name].float() - base[name].float()):
                raise UserError(f"{name} changed by numbers that are not finite; they have no singular values.")
        if not any(ranks.values()):
            raise UserError("low-rank: no matrix of a numbered layer differs from the base; there is nothing to cut.")
        return ranks

    def rank_of(self, shape: Sequence[int]) -> int:
        """How many singular values of a matrix [out, in] are kept."""
        rows, columns = shape
        return min(self.rank or max(1, int(self.bits * rows * columns / (16 * (rows + columns)))), rows, columns)

    def specs(self, group: Sequence[str], given: Mapping[str, Spec], stats: Any) -> dict[str, Spec]:
        import torch

        name, spec = group[0], given[group[0]]
        if name not in stats:
            return {}
        if (rank := stats[name]) is None:
            return {name: spec}
        rows, columns = spec.shape
        return {f"{name}:up": type(spec)(torch.bfloat16, (rows, rank)),
                f"{name}:down": type(spec)(torch.bfloat16, (rank, columns))}

    def apply(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any
              ) -> dict[str, torch.Tensor]:
        """The factors, each with the root of the singular values."""
        import torch

        name, (base, tuned) = group[0], tensors
        if name not in stats:
            return {}
        if (rank := stats[name]) is None:
            return {name: tuned[name]}
        left, values, right = torch.linalg.svd(tuned[name].float() - base[name].float(), full_matrices=False)
        root = values[:rank].sqrt()
        return {f"{name}:up": left[:, :rank] * root, f"{name}:down": root[:, None] * right[:rank]}

    def facts(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any) -> dict[str, Any]:
        """The rank that is kept."""
        return {"rank": stats[group[0]]} if stats.get(group[0]) else {}
