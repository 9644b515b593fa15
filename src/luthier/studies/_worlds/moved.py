"""moved: how far the mixture (1 - l) P + l U is from a target: what each target row costs to be reached, and what U is made of.

`transport-cost` on `aim` has one record a target row: its share of the transport plan's cost, times the number of rows, so that
the mean is the distance. `from-target` on `picked` has one record a chosen row: 1 where its domain is the target's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.files import write_lines
from luthier.core.step import Ctx, Step
from luthier.techniques.data._transport import cost, solve


class Moved(Step, name="moved"):
    """Measure what a choice of rows moves."""

    inputs: ClassVar[dict[str, str]] = {"world": "examples", "encoder": "model", "picked?": "examples"}
    output: ClassVar[str] = "records"
    seeded: ClassVar[bool] = False
    arm: str = Field("moved", description="name of this arm in tables")
    weight: float = Field(0.1, gt=0, lt=1, description="l: the weight of the chosen rows")
    most: int = Field(1500, ge=2, description="rows of the pool that stand for it")
    eps: float = Field(0.02, gt=0, description="regularisation of the distance")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Embed, solve, and say what each target row costs."""
        import torch

        world = inputs["world"]
        pool, aim = list(world.examples("pool"))[:self.most], list(world.examples("aim"))
        picked = list(inputs["picked"].examples("all")) if "picked" in inputs else []
        encoder = ctx.engine.load(inputs["encoder"])
        rows = [*pool, *picked]
        x, y = (torch.from_numpy(ctx.engine.embed(encoder, ["\n".join(t.text for t in e.turns) for e in some])).double()
                for some in (rows, aim))
        share = self.weight if picked else 0.0
        a = torch.cat([torch.full((len(pool),), (1 - share) / len(pool)),
                       torch.full((len(picked),), share / max(1, len(picked)))])
        plan = solve(x, y, self.eps, a=a, tolerance=1e-3, most=2000, momentum=1.3)
        apart = cost(x, y)
        moved = a.double()[:, None] / len(y) * ((plan.f[:, None] + plan.g - apart) / self.eps).exp()
        each = (moved * apart).sum(0) * len(y)
        write_lines(ctx.folder / "scores.jsonl", [
            *({"id": e.id, "set": "aim", "cluster": e.id, "metric": "transport-cost", "value": v}
              for e, v in zip(aim, each.tolist(), strict=True)),
            *({"id": f"picked/{e.id}", "set": "picked", "cluster": e.id, "metric": "from-target",
               "value": float(e.source == "review")} for e in picked)])
        write_lines(ctx.folder / "predictions.jsonl", [])
        return seal("records", ctx.folder, arm=self.arm, metrics={"transport-cost": False, "from-target": True})
