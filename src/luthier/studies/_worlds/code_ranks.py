"""code-ranks: how far up the right one of all tested functions stands, for what each of them says first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.files import write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.step import Ctx, Step


class CodeRanks(Step, name="code-ranks"):
    """1 / rank of each question's own document among those of all, by the cosine of embeddings."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "examples": "examples", "tuned?": "adapter|delta|model"}
    output: ClassVar[str] = "records"
    arm: str = Field("tuned", description="name of this arm in tables")
    max_tokens: int = Field(128, ge=8, description="how much of a program is read")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Embed both sides and rank; ties count against."""
        rows = list(inputs["examples"].examples("test"))
        model = ctx.engine.load(inputs["base"], inputs.get("tuned"))
        asked, sought = (ctx.engine.embed(model, [e.part(part) for e in rows], self.max_tokens)
                         for part in ("question", "document"))
        cosines = asked @ sought.T
        write_lines(ctx.folder / "scores.jsonl", (
            {"id": e.id, "set": "test", "cluster": e.cluster, "metric": "mrr", "value": 1 / float((row >= row[i]).sum())}
            for i, (e, row) in enumerate(zip(rows, cosines, strict=True))))
        return seal("records", ctx.folder, arm=self.arm, metrics={"mrr": True}, lines=len(rows))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every question has a rank."""
        wanted = sum(1 for _ in inputs["examples"].examples("test"))
        return [receipt("code-ranks/records", wanted, artifact.meta["lines"], unit="records")]
