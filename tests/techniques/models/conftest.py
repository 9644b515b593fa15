"""A tiny picture encoder joined with the pico decoder, and pictures of one colour each."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from luthier.core.artifact import Artifact, seal
from luthier.pipelines.steps.join_models import JoinModels
from tests.conftest import new_ctx

COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 200, 20), "grey": (120, 120, 120)}
SIDE, PATCH, PLACES = 24, 8, 9


@pytest.fixture(scope="session")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A CLIP encoder of three layers with random weights: 9 patches a picture."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("vision")
    torch.manual_seed(3)
    CLIPVisionModel(CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE, patch_size=PATCH,
        projection_dim=8, initializer_range=0.2)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    (folder / "licenses").mkdir()
    (folder / "licenses" / "TEST.txt").write_text("random weights\n")
    return seal("model", folder, name="tiny-clip", note="", path=str(folder), architecture="encoder")


@pytest.fixture(scope="session")
def joined(vision: Artifact, pico: Artifact, engine: object, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """LLaVA of the tiny encoder and pico, with a linear projector."""
    ctx = new_ctx(tmp_path_factory.mktemp("joined") / "joined", engine)
    inputs = {"vision": vision, "language": pico}
    made = JoinModels().run(inputs, ctx)
    assert [r.verdict for r in JoinModels().receipts(inputs, made, ctx)] == ["agrees"]
    return made


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A picture of each colour."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        Image.new("RGB", (SIDE, SIDE), colour).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in COLOURS}
