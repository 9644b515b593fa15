"""ruled: tuned models whose weights a rule has changed or merged, the base's weights at hand, as a model of its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.component import Slot, named
from luthier.core.kinds import WeightRule
from luthier.core.step import Ctx, Step

if TYPE_CHECKING:
    from luthier.engine.models import Model

WEIGHTS = "weights"


class Ruled(Step, name="ruled"):
    """Apply a weight rule to a base and what was tuned on it, once or several times."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "*": "adapter|delta|model"}
    output: ClassVar[str] = "model"
    seeded: ClassVar[bool] = False
    rule: Slot[WeightRule] = Field(named("rescale-intruders"), description="the rule; the base is its first model")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Merge in float32, apply the rule group by group, and save."""
        import torch

        from luthier.engine import models, weights

        base, tuned = inputs["base"], [inputs[n] for n in inputs if n != "base"]
        before = ctx.engine.fresh(base, torch.float32).module.state_dict()
        model, *others = [self._whole(models.add_tuned(ctx.engine.fresh(base, torch.float32), t), t) for t in tuned]
        after = model.module.state_dict()
        sides = [before, after, *(other.module.state_dict() for other in others)]
        with torch.no_grad():
            for group in self.rule.groups(list(before)):
                given = [{name: weights_[name] for name in group} for weights_ in sides]
                for name, tensor in self.rule.apply(group, given, None).items():
                    after[name].copy_(tensor)
        shutil.rmtree(ctx.folder / WEIGHTS, ignore_errors=True)  # of an attempt that was killed
        (ctx.folder / WEIGHTS).mkdir()
        weights.SAVERS["model"](model, ctx.folder / WEIGHTS)
        copy_licenses([base.folder, *(t.folder for t in tuned)], ctx.folder)
        return seal("model", ctx.folder, name=f"{base.meta['name']}, {self.rule.info.name}", note=base.meta.get("note", ""),
                    path=WEIGHTS, architecture=base.meta["architecture"])

    @staticmethod
    def _whole(model: Model, tuned: Artifact) -> Model:
        if tuned.kind == "adapter":
            model.module = model.module.merge_and_unload()
        return model
