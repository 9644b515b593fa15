"""clip-length: a model that hears, for clips of another length: its position embeddings are interpolated over time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.errors import UserError
from luthier.core.finding import Finding, receipt
from luthier.core.step import Ctx, Step

WEIGHTS = "weights"


class ClipLength(Step, name="clip-length"):
    """Write the model for clips of so many frames."""

    inputs: ClassVar[dict[str, str]] = {"base": "model"}
    output: ClassVar[str] = "model"
    seeded: ClassVar[bool] = False
    frames: int = Field(1024, ge=1, description="frames of a clip, one every 10 ms")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError for a model that hears no clips, and for clips shorter than a patch."""
        import torch
        from transformers import AutoModel

        from luthier.engine.models import folder_of

        base = inputs["base"]
        model = ctx.engine.fresh(base, torch.float32)
        if model.sounds is None:
            raise UserError(f"clip-length: {base.meta['name']} hears no clips.")
        config = model.module.config
        if self.frames < config.patch_size:
            raise UserError(f"clip-length: frames = {self.frames}, but a patch has {config.patch_size}.")
        state = model.module.state_dict()
        state["embeddings.position_embeddings"] = interpolated(state["embeddings.position_embeddings"], config, self.frames)
        config.max_length = self.frames
        made: Any = AutoModel.from_config(config)
        made.load_state_dict(state)
        shutil.rmtree(ctx.folder / WEIGHTS, ignore_errors=True)  # of an attempt that was killed
        (ctx.folder / WEIGHTS).mkdir()
        made.save_pretrained(ctx.folder / WEIGHTS)
        extractor = model.sounds.extractor
        extractor.max_length = self.frames
        extractor.save_pretrained(ctx.folder / WEIGHTS)
        copy_licenses([base.folder, folder_of(base)], ctx.folder)
        return seal("model", ctx.folder, name=base.meta["name"], note=f"for clips of {self.frames} frames", path=WEIGHTS,
                    architecture="encoder", places=list(made.embeddings.position_embeddings.shape))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """The places of the embedding are those of the clip."""
        import torch

        model = ctx.engine.load(artifact, dtype=torch.float32)
        assert model.sounds is not None
        with torch.no_grad():
            seen = model.module(model.sounds.blank).last_hidden_state.shape[1]
        return [receipt("clip-length/places", artifact.meta["places"][1], seen, unit="places")]


def interpolated(positions: Any, config: Any, frames: int) -> Any:
    """[1, 2 + patches, width] for clips of so many frames: linear over time, the two first places as they are."""
    import torch

    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    columns = (frames - config.patch_size) // config.time_stride + 1
    first, grid = positions[:, :2], positions[:, 2:]
    grid = grid.transpose(1, 2).reshape(1, grid.shape[2], rows, -1)
    grid = torch.nn.functional.interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=False)
    return torch.cat([first, grid.flatten(2).transpose(1, 2)], 1)
