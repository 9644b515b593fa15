"""ruled: a tuned model whose weights a rule has changed, the base's weights at hand, as a model of its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.component import Slot, named
from luthier.core.kinds import WeightRule
from luthier.core.step import Ctx, Step

WEIGHTS = "weights"


class Ruled(Step, name="ruled"):
    """Apply a weight rule to a base and what was tuned on it."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "tuned": "adapter|delta|model"}
    output: ClassVar[str] = "model"
    seeded: ClassVar[bool] = False
    rule: Slot[WeightRule] = Field(named("rescale-intruders"), description="the rule; the base is its first model")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Merge in float32, apply the rule group by group, and save."""
        import torch

        from luthier.engine import models, weights

        base, tuned = inputs["base"], inputs["tuned"]
        before = ctx.engine.fresh(base, torch.float32).module.state_dict()
        model = models.add_tuned(ctx.engine.fresh(base, torch.float32), tuned)
        if tuned.kind == "adapter":
            model.module = model.module.merge_and_unload()
        after = model.module.state_dict()
        with torch.no_grad():
            for group in self.rule.groups(list(before)):
                given = [{name: weights_[name] for name in group} for weights_ in (before, after)]
                for name, tensor in self.rule.apply(group, given, None).items():
                    after[name].copy_(tensor)
        shutil.rmtree(ctx.folder / WEIGHTS, ignore_errors=True)  # of an attempt that was killed
        (ctx.folder / WEIGHTS).mkdir()
        weights.SAVERS["model"](model, ctx.folder / WEIGHTS)
        copy_licenses([base.folder, tuned.folder], ctx.folder)
        return seal("model", ctx.folder, name=f"{base.meta['name']}, {self.rule.info.name}", note=base.meta.get("note", ""),
                    path=WEIGHTS, architecture=base.meta["architecture"])
