"""guarded-model: a world's model that went through a first training, such as one in a policy with regularizers to make it last.

What comes of it is the base of further trainings, and so the same under every training seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.component import Slot
from luthier.core.identity import hash_file
from luthier.core.kinds import Regularizer
from luthier.core.step import Ctx, Step


class GuardedModel(Step, name="guarded-model"):
    """A base after a first, full training."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "examples": "examples"}
    output: ClassVar[str] = "model"
    seeded: ClassVar[bool] = False
    data: str = Field("examples.align", description="what it learns")
    regularizers: tuple[Slot[Regularizer], ...] = Field((), description="what is added to it")
    epochs: float = Field(8, gt=0, description="passes over its rows")
    learning_rate: float = Field(6e-4, gt=0, description="peak learning rate")
    batch_rows: int = Field(16, ge=1, description="rows in an optimizer step")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Full fine-tuning of the base; its checkpoint becomes a base of its own."""
        fit = {"use": "fit", "tasks": [{"data": self.data, "objective": "supervised"}], "method": "full",
               "regularizers": [r.to_dict() for r in self.regularizers], "length": {"epochs": self.epochs},
               "learning_rate": self.learning_rate, "batch_rows": self.batch_rows, "dtype": "float32"}
        tuned = ctx.engine.fit(fit, inputs, ctx)
        copy_licenses([tuned.folder], ctx.folder)
        return seal("model", ctx.folder, identity=hash_file(tuned.folder / "model.safetensors"), path=tuned.folder.name,
                    name=f"{inputs['base'].meta['name']}, trained", note=f"after {self.data}",
                    architecture=inputs["base"].meta["architecture"])
