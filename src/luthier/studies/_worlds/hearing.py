"""hearing: a tiny spectrogram transformer that has learned the known kinds of a world of clips; made once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.studies._worlds._trained import TrainedOnWorld

MELS, FRAMES, PATCH = 64, 64, 16


class Hearing(TrainedOnWorld, name="hearing"):
    """A spectrogram transformer trained on the subset `known` of clips."""

    made: ClassVar[str] = "tiny-ast"
    of: ClassVar[str] = "clips"
    architecture: ClassVar[str] = "encoder"
    width: int = Field(96, ge=16, description="size of the hidden states")
    layers: int = Field(4, ge=1, description="layers")
    epochs: float = Field(12, gt=0, description="passes over the clips")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")

    def lesson(self) -> dict[str, Any]:
        return {"use": "fit", "tasks": [{"data": "examples.known", "objective": "classify", "head": "linear"}],
                "method": "full", "length": {"epochs": self.epochs}, "learning_rate": self.learning_rate, "batch_rows": 32,
                "schedule": "cosine", "dtype": "float32", "over_long": "truncate"}

    def begin(self, folder: Path) -> None:
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
