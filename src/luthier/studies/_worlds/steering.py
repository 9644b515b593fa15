"""steering: a tiny decision transformer that has learned the known tasks of control; made once and kept."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.identity import digest, hash_folder
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.control import SIZE
from luthier.studies._worlds.pretrained import LICENSE, kept_model, put


class Steering(Step, name="steering"):
    """A decision transformer trained on the subset `known` of a world of control."""

    inputs: ClassVar[dict[str, str]] = {"examples": "examples"}
    output: ClassVar[str] = "model"
    seeded: ClassVar[bool] = False
    width: int = Field(64, ge=16, description="size of the hidden states")
    layers: int = Field(3, ge=1, description="layers")
    epochs: float = Field(12, gt=0, description="passes over the rows")
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """The kept model, or a new one."""
        world = inputs["examples"]
        folder = kept_model(digest({"step": self.identity, "rows": hash_folder(world.folder / "examples" / "known")}))
        if (folder / "checksum.json").exists():
            ctx.log(f"kept: {folder}")
        else:
            blank = ctx.folder / "blank"
            shutil.rmtree(blank, ignore_errors=True)  # of an attempt that was killed
            self._blank(blank)
            start = seal("model", blank, name="tiny-decisions", note="random weights", path=str(blank.resolve()),
                         architecture="decoder")
            fit = {"use": "fit", "tasks": [{"data": "examples.known"}], "method": "full", "length": {"epochs": self.epochs},
                   "learning_rate": self.learning_rate, "batch_rows": 64, "schedule": "cosine", "dtype": "float32",
                   "max_tokens_per_example": 128}
            put(ctx.engine.fit(fit, {"base": start, "examples": world}, ctx), folder, blank)
        copy_licenses([folder], ctx.folder)
        return seal("model", ctx.folder, identity=hash_folder(folder), name="tiny-decisions",
                    note="trained on a world of control", path=str(folder), architecture="decoder")

    def _blank(self, folder: Path) -> None:
        """A model with random weights; its tokenizer knows the tokens of steps, and bytes."""
        import torch

        from luthier.engine.decisions import RETURN, STATE, WORDS, classes
        from luthier.studies._worlds.pretrained import _tokenizer

        tokenizer = _tokenizer([""], 300)
        tokenizer.add_tokens(list(WORDS), special_tokens=True)
        configuration, kind = classes()
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        model = kind(configuration(
            state_size=SIZE, return_id=tokenizer.convert_tokens_to_ids(RETURN), state_id=tokenizer.convert_tokens_to_ids(STATE),
            vocab_size=len(tokenizer), n_positions=128, n_embd=self.width, n_layer=self.layers, n_head=4, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))
        torch.random.set_rng_state(state)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "licenses").mkdir()
        (folder / "licenses" / "WORLD.txt").write_text(LICENSE)
