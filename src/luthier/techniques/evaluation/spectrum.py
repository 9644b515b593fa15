"""spectrum: how many directions a tuning used: the energy rank of each weight change.

ΔW = W - W0 [out, in] has singular values s_1 >= s_2 >= …; its energy rank is the smallest k with
sum_{i<=k} s_i² >= energy x sum s_i². The finding is the mean over changed matrices of energy rank / min(out, in), beside it
the number itself, the numeric rank (an adapter's is at most its `rank`) and what a random Gaussian change would have by the
Marchenko-Pastur law (.51 of a square matrix). A change kept in bfloat16 holds its rounding too, which has full rank.

When it helps: shows whether a low-rank adapter had room for what full tuning does. Source: Biderman et al. 2024, "LoRA learns
less and forgets less", section 5 (seed 171).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from luthier.core.files import write_lines
from luthier.core.finding import Finding, audited, not_applicable
from luthier.core.kinds import Audit
from luthier.core.step import Ctx
from luthier.engine.subjects import Subject
from luthier.techniques.evaluation._spectra import changed

MATRICES = "matrices.jsonl"


class SpectrumOfChange(Audit, name="spectrum", seeds=[171]):
    """The energy rank of each weight change."""

    energy: float = Field(0.9, gt=0, lt=1, description="share of the squared singular values that the rank must hold")
    modules: tuple[str, ...] = Field((), description="parts of names of linear layers, or attention; all when left out")
    max_share: float = Field(1.0, gt=0, le=1, description="most that the mean rank may be of full rank; 1 asks for nothing")

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/spectrum`; one line a matrix in `matrices.jsonl`."""
        rows = [self._matrix(name, before, after) for name, before, after in changed(subject, self.modules)]
        if not rows:
            return [not_applicable("audit/spectrum", "the change is zero: no linear layer was changed")]
        write_lines(ctx.folder / MATRICES, rows)
        ranks = sorted(r["energy_rank"] for r in rows)
        share, random = (sum(r[key] for r in rows) / len(rows) for key in ("share", "gaussian_share"))
        return [audited("audit/spectrum", None, share, self.max_share, (share, share), unit="of full rank",
                        evidence=MATRICES, title=f"rank of the change that holds {self.energy:.0%} of it",
                        detail=f"{len(rows)} changed matrices, ranks {ranks[0]} to {ranks[-1]}; a random change has "
                               f"{random:.2f} of full rank", matrices=len(rows), median_rank=ranks[len(ranks) // 2],
                        most=ranks[-1], numeric_rank=max(r["numeric_rank"] for r in rows), gaussian_share=random)]

    def _matrix(self, name: str, before: Any, after: Any) -> dict[str, Any]:
        import torch

        from luthier.engine.spectra import effective_rank, energy_rank, gaussian_share, numeric_rank

        delta = after - before
        values = torch.linalg.svdvals(delta)
        rank, full = energy_rank(values, self.energy), min(delta.shape)
        return {"name": name, "shape": list(delta.shape), "energy_rank": rank, "share": rank / full,
                "numeric_rank": numeric_rank(delta, float(torch.linalg.matrix_norm(after, 2))),
                "effective_rank": effective_rank(values), "norm": float(values.double().norm()),
                "gaussian_share": gaussian_share(delta.shape[0], delta.shape[1], self.energy)}
