"""composed: base + what a task has moved + what a language has moved, with the task's head (Ansell et al. 2021).

The task may have begun at another start than the base, such as the base with another language: what it has moved is counted
from there. Each of the two is a delta or a whole model; of the latter every entry that differs counts. Differences are added in
float32, times `scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, open_artifact
from luthier.core.finding import Finding, receipt
from luthier.core.step import Ctx, Step

if TYPE_CHECKING:
    import torch

    from luthier.engine.sparse import SparseDelta


class Composed(Step, name="composed"):
    """Add what two trainings of one base have moved."""

    inputs: ClassVar[dict[str, str]] = {
        "base": "model", "task": "delta|model", "start?": "model", "language?": "delta|model"}
    output: ClassVar[str] = "model"
    seeded: ClassVar[bool] = False
    scale: float = Field(1.0, gt=0, description="factor of both differences")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Sum, apply, and save a model with the task's head."""
        import torch

        from luthier.engine import weights
        from luthier.engine.sparse import SparseDelta

        base, task = inputs["base"], inputs["task"]
        total = moved(inputs.get("start", base), task, ctx)
        if "language" in inputs:
            total = total + moved(base, inputs["language"], ctx)
        total = SparseDelta({name: (at, by * self.scale) for name, (at, by) in total.entries.items()})
        model = ctx.engine.fresh(base, torch.float32)
        own = dict(model.module.named_parameters())
        before = {name: tensor.detach().clone() for name, tensor in own.items()}
        old = total.apply(own)
        old.put(own)
        ctx.journal.put("lost", sum(int((own[n] != t).sum()) for n, t in before.items()))
        total.apply(own)
        weights.load_heads(model, task)
        model.template = task.meta["template"]
        return weights.save(model, "model", ctx.folder, task.meta["heads"], entries=len(total), base={
            "name": base.meta["name"], "note": base.meta["note"], "identity": base.identity, "step": base.folder.name})

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Taken back, the differences leave the base bit for bit; with them no other entry is another one."""
        import torch

        from luthier.engine.models import add_tuned

        base = inputs["base"]
        both = ctx.engine.fresh(base, torch.float32), add_tuned(ctx.engine.fresh(base, torch.float32),
                                                                open_artifact(artifact.folder))
        before, after = (dict(model.module.named_parameters()) for model in both)
        differ = sum(int((after[n] != t).sum()) for n, t in before.items())
        return [receipt("composed/reverted = base", 0, ctx.journal.values["lost"], unit="entries"),
                receipt("composed/entries that differ", 0, max(0, differ - artifact.meta["entries"]), unit="entries",
                        detail="beyond those that the differences name")]


def moved(start: Artifact, tuned: Artifact, ctx: Ctx) -> SparseDelta:
    """What a training has moved: its own sparse delta, or every entry that differs from where it began."""
    import torch
    from safetensors.torch import load_file

    from luthier.engine.deltas import FILE
    from luthier.engine.models import add_tuned
    from luthier.engine.sparse import AT, BY, SparseDelta

    if tuned.kind == "delta":
        stored = load_file(tuned.folder / FILE)
        if all(name.endswith((AT, BY)) for name in stored):
            return SparseDelta.of(stored)
    both = ctx.engine.fresh(start, torch.float32), add_tuned(ctx.engine.fresh(start, torch.float32), tuned)
    before, after = (dict(model.module.named_parameters()) for model in both)
    masks: dict[str, torch.Tensor] = {name: after[name] != tensor for name, tensor in before.items()}
    return SparseDelta.between(before, after, masks)
