"""hearing: a tiny spectrogram transformer that has learned the known kinds of a world of clips; made once and kept."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.identity import digest, hash_folder
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.pretrained import LICENSE, kept_model, put

MELS, FRAMES, PATCH = 64, 64, 16


class Hearing(Step, name="hearing"):
    """A spectrogram transformer trained on the subset `known` of clips."""

    inputs: ClassVar[dict[str, str]] = {"examples": "examples"}
    output: ClassVar[str] = "model"
    seeded: ClassVar[bool] = False
    width: int = Field(96, ge=16, description="size of the hidden states")
    layers: int = Field(4, ge=1, description="layers")
    epochs: float = Field(12, gt=0, description="passes over the clips")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """The kept model, or a new one."""
        world = inputs["examples"]
        folder = kept_model(digest({"step": self.identity, "clips": hash_folder(world.folder / "examples" / "known")}))
        if (folder / "checksum.json").exists():
            ctx.log(f"kept: {folder}")
        else:
            blank = ctx.folder / "blank"
            shutil.rmtree(blank, ignore_errors=True)  # of an attempt that was killed
            self._blank(blank)
            start = seal("model", blank, name="tiny-ast", note="random weights", path=str(blank.resolve()),
                         architecture="encoder")
            fit = {"use": "fit", "tasks": [{"data": "examples.known", "objective": "classify", "head": "linear"}],
                   "method": "full",
                   "length": {"epochs": self.epochs}, "learning_rate": self.learning_rate, "batch_rows": 32,
                   "schedule": "cosine",
                   "dtype": "float32", "over_long": "truncate"}
            put(ctx.engine.fit(fit, {"base": start, "examples": world}, ctx), folder, blank)
        copy_licenses([folder], ctx.folder)
        return seal("model", ctx.folder, identity=hash_folder(folder), name="tiny-ast", note="trained on a world of clips",
                    path=str(folder), architecture="encoder")

    def _blank(self, folder: Path) -> None:
        """A model with random weights, and its extractor."""
        import torch
        from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        model = ASTModel(ASTConfig(
            hidden_size=self.width, num_hidden_layers=self.layers, num_attention_heads=4, intermediate_size=4 * self.width,
            patch_size=PATCH, frequency_stride=10, time_stride=10, max_length=FRAMES, num_mel_bins=MELS))
        with torch.no_grad():
            torch.nn.init.trunc_normal_(model.embeddings.position_embeddings, std=0.02)
        torch.random.set_rng_state(state)
        model.save_pretrained(folder)
        ASTFeatureExtractor(num_mel_bins=MELS, max_length=FRAMES).save_pretrained(folder)
        (folder / "licenses").mkdir()
        (folder / "licenses" / "WORLD.txt").write_text(LICENSE)
