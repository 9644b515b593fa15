"""found-ranks: what a search of ranks has said, and whether a second one says the same.

`lead` and `rank` on `matrices` have one record a layer: by how much its highest selection value is above 1 / k0, where all
begin, and the rank. `agreement` on `pairs` has one record for every two layers: 1 where two searches order their ranks alike,
-1 where they order them the other way round, 0 where one of them has them equal: the mean is Kendall's tau.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.files import read_json, write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.ranked_lora import RANKS


class FoundRanks(Step, name="found-ranks"):
    """Read the ranks of one search, or compare those of two."""

    inputs: ClassVar[dict[str, str]] = {"search": "adapter", "again?": "adapter"}
    output: ClassVar[str] = "records"
    seeded: ClassVar[bool] = False
    arm: str = Field("ranks", description="name of this arm in tables")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """One record a layer, and one for every two of them."""
        told = read_json(inputs["search"].folder / RANKS)
        lines = [{"id": name, "set": "matrices", "cluster": name, "metric": metric, "value": value}
                 for name, entry in told.items() for metric, value in (
                     ("lead", max(entry["selection"]) - 1 / len(entry["selection"])), ("rank", float(entry["rank"])))]
        if "again" in inputs:
            other = read_json(inputs["again"].folder / RANKS)
            lines += [{"id": f"{a} {b}", "set": "pairs", "cluster": a, "metric": "agreement",
                       "value": float(_sign(told[a]["rank"] - told[b]["rank"]) * _sign(other[a]["rank"] - other[b]["rank"]))}
                      for a, b in combinations(told, 2)]
        write_lines(ctx.folder / "scores.jsonl", lines)
        write_lines(ctx.folder / "predictions.jsonl", [])
        return seal("records", ctx.folder, arm=self.arm, metrics={"lead": False, "rank": False, "agreement": False},
                    layers=len(told), lines=len(lines))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Two records a layer, and one for every two layers where two searches are compared."""
        n = artifact.meta["layers"]
        return [receipt("found-ranks/records", 2 * n + ("again" in inputs) * n * (n - 1) // 2, artifact.meta["lines"],
                        unit="records")]


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
