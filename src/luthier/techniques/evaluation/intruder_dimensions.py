"""intruder-dimensions: new leading singular vectors that tuning wrote into the weights, unlike any of the base.

With W0 = U0 S0 V0^T and W = U S V^T (an adapter merged first), the tuned vector j of the k largest singular values has
m_j = max_i |u0_i . u_j| over ALL vectors i of the base, and is an intruder where m_j < eps. `both` takes the smaller
m_j of the two sides. The finding is intruders per changed matrix, with the curve over eps = 0.1 … 0.9 and exp of the
entropy of the singular values of W - W0 (its effective rank). Weights are what they are: the interval is the number
itself.

When it helps: low-rank adapters of small rank or high rate leave intruders, full tuning hardly any; what a model forgot
sits in them, and scaling them down brings it back (`rescale-intruders`). Rotation among nearly equal singular values is
a known false alarm. Source: Shuttleworth et al. 2024, "LoRA vs full fine-tuning: an illusion of equivalence" (seed 96).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.files import write_lines
from luthier.core.finding import Finding, audited, not_applicable
from luthier.core.kinds import Audit
from luthier.core.step import Ctx
from luthier.engine.subjects import Subject
from luthier.techniques.evaluation._spectra import changed

GRID = tuple(n / 10 for n in range(1, 10))
MATRICES = "matrices.jsonl"


class IntruderDimensions(Audit, name="intruder-dimensions", seeds=[96]):
    """Leading singular vectors of tuned matrices that the base had nothing like."""

    mends: ClassVar[tuple[str, ...]] = ("weight_rule rescale-intruders",)
    k: int = Field(10, ge=1, description="leading singular vectors of each matrix that are looked at")
    eps: float = Field(0.5, gt=0, le=1, description="a vector less similar than this to every one of the base is an intruder")
    side: Literal["left", "right", "both"] = Field("left", description="which singular vectors are compared")
    modules: tuple[str, ...] = Field((), description="parts of names of linear layers, or attention; all when left out")
    max_per_matrix: float = Field(1.0, gt=0, description="most intruders that a changed matrix may have on average")

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/intruder-dimensions`; one line a matrix in `matrices.jsonl`.

        Raises:
            UserError: k is above the smaller side of a matrix, or what `_spectra.changed` refuses.
        """
        rows = [self._matrix(name, before, after, ctx) for name, before, after in changed(subject, self.modules)]
        if not rows:
            return [not_applicable("audit/intruder-dimensions", "the change is zero: no linear layer was changed")]
        write_lines(ctx.folder / MATRICES, rows)
        count = sum(r["intruders"] for r in rows)
        curve = {f"{eps:g}": sum(m < eps for r in rows for m in r["similarity"]) for eps in GRID}
        mean = count / len(rows)
        worst = max(rows, key=lambda r: r["intruders"])
        return [audited("audit/intruder-dimensions", None, mean, self.max_per_matrix, (mean, mean), unit="a matrix",
                        evidence=MATRICES, title="intruder dimensions",
                        detail=f"{count} intruders in {len(rows)} changed matrices; most in {worst['name']}", count=count,
                        matrices=len(rows), curve=curve,
                        effective_rank=sum(r["effective_rank"] for r in rows) / len(rows))]

    def _matrix(self, name: str, before: Any, after: Any, ctx: Ctx) -> dict[str, Any]:
        from luthier.engine.spectra import Spectrum, effective_rank

        if self.k > min(after.shape):
            raise UserError(f"intruder-dimensions: k = {self.k} is above {min(after.shape)}, the smaller side of {name} "
                            f"{tuple(after.shape)}. Lower k, or leave the layer out: modules.")
        import torch

        similarity = Spectrum.of(after).similarity(Spectrum.of(before), self.k, self.side).tolist()
        ctx.progress(1, 1, name)
        return {"name": name, "shape": list(after.shape), "similarity": [round(m, 6) for m in similarity],
                "intruders": sum(m < self.eps for m in similarity),
                "effective_rank": effective_rank(torch.linalg.svdvals(after - before))}
