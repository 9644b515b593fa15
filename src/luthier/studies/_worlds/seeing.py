"""seeing: a tiny picture encoder that has learned which caption belongs to which scene, as CLIP learns it; made once and kept.

    loss = mean of both cross-entropies of s_ij = exp(t) cos(picture_i, caption_j), the right ones on the diagonal

Captions are read as bags of words through one table: what is needed is a picture encoder, and its text side is thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.identity import digest, hash_folder
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.pretrained import LICENSE, placed
from luthier.studies._worlds.scenes import SIDE, _scene

PATCH = 16  # a patch is a field: in version 1, patches of 12, a shape lay in up to four
WORDS = 160  # 16 kinds of things, by themselves and in each of 9 fields


class Seeing(Step, name="seeing", version=2):
    """A picture encoder trained by contrast on scenes of its own."""

    output: ClassVar[str] = "model"
    seeded: ClassVar[bool] = False
    width: int = Field(64, ge=8, description="size of the hidden states")
    layers: int = Field(4, ge=1, description="layers")
    steps: int = Field(600, ge=1, description="optimizer steps")
    batch: int = Field(64, ge=2, description="pictures of a step, each against the captions of all")
    seed: int = Field(1, ge=0, description="which scenes; none of them is a scene of the rows")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """The kept model, or a new one."""
        from luthier.engine.packages import cache_folder

        folder = cache_folder() / "worlds" / digest({"step": self.identity})
        if (folder / "checksum.json").exists():
            ctx.log(f"kept: {folder}")
        else:
            self._make(folder, ctx)
        copy_licenses([folder], ctx.folder)
        return seal("model", ctx.folder, identity=hash_folder(folder), name="tiny-clip", note="trained on drawn scenes",
                    path=str(folder), architecture="encoder")

    def _make(self, folder: Path, ctx: Ctx) -> None:
        with placed(folder) as (work, about):
            about["accuracy"] = self._train(work, ctx)
            (work / "licenses").mkdir()
            (work / "licenses" / "WORLD.txt").write_text(LICENSE)

    def _train(self, folder: Path, ctx: Ctx) -> float:
        """Train and save; returns the share of pictures of the last steps whose own caption came first."""
        import torch
        from transformers import CLIPVisionConfig, CLIPVisionModel
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        from luthier.engine.pictures import opened

        config: Any = CLIPVisionConfig(hidden_size=self.width, intermediate_size=2 * self.width, num_hidden_layers=self.layers,
                                       num_attention_heads=4, image_size=SIDE, patch_size=PATCH, projection_dim=self.width)
        processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
        draw, state = Rng(self.seed).within("seeing"), torch.random.get_rng_state()
        torch.manual_seed(self.seed)
        eyes, words, heat = CLIPVisionModel(config), torch.nn.EmbeddingBag(WORDS,
                                                                           self.width), torch.nn.Parameter(torch.tensor(2.0))
        torch.random.set_rng_state(state)
        known: dict[str, int] = {}
        optimizer = torch.optim.AdamW([*eyes.parameters(), *words.parameters(), heat], lr=1e-3)
        right: list[float] = []
        for step in range(self.steps):
            scenes = [_scene(draw("scene", f"{step}/{n}"), "") for n in range(self.batch)]
            pixels = processor(images=[opened(s.turns[0].parts[0].value) for s in scenes], return_tensors="pt")["pixel_values"]
            texts = [[known.setdefault(f"{b['class']} {b['box'][:2]}", len(known)) for b in s.meta["boxes"]] +
                     [known.setdefault(b["class"], len(known)) for b in s.meta["boxes"]] for s in scenes]
            said = words(torch.tensor([i for t in texts for i in t]), torch.tensor([0, *map(len, texts[:-1])]).cumsum(0))
            seen = eyes(pixels).pooler_output
            scores = heat.exp() * torch.nn.functional.normalize(seen, dim=-1) @ torch.nn.functional.normalize(said, dim=-1).T
            own = torch.arange(len(scores))
            loss = (torch.nn.functional.cross_entropy(scores, own) + torch.nn.functional.cross_entropy(scores.T, own)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right.append(float((scores.argmax(1) == own).float().mean()))
            ctx.progress(step + 1, self.steps, "steps", loss=float(loss.detach()))
        eyes.save_pretrained(folder)
        processor.save_pretrained(folder)
        return sum(right[-10:]) / len(right[-10:])
