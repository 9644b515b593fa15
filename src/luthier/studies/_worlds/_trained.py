"""What worlds share that train a small model of their own on the subset `known`, and keep it for later runs."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.identity import digest, hash_folder
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.pretrained import LICENSE, kept_model, put


class TrainedOnWorld(Step):
    """A model that begins with random weights (`begin`) and learns the subset `known` of its input (`lesson`)."""

    inputs: ClassVar[dict[str, str]] = {"examples": "examples"}
    output: ClassVar[str] = "model"
    seeded: ClassVar[bool] = False
    made: ClassVar[str] = ""  # name of the model
    of: ClassVar[str] = ""  # what its world is about
    architecture: ClassVar[str] = "decoder"

    @abstractmethod
    def begin(self, folder: Path) -> None:
        """Save a model with random weights and what reads its inputs."""

    @abstractmethod
    def lesson(self) -> dict[str, Any]:
        """The step `fit` that teaches it."""

    def blank(self, folder: Path) -> None:
        """The model before it has learned anything, with its terms."""
        self.begin(folder)
        (folder / "licenses").mkdir()
        (folder / "licenses" / "WORLD.txt").write_text(LICENSE)

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """The kept model, or a new one."""
        world = inputs["examples"]
        folder = kept_model(digest({"step": self.identity, "rows": hash_folder(world.folder / "examples" / "known")}))
        if (folder / "checksum.json").exists():
            ctx.log(f"kept: {folder}")
        else:
            blank = ctx.folder / "blank"
            shutil.rmtree(blank, ignore_errors=True)  # of an attempt that was killed
            self.blank(blank)
            start = seal("model", blank, name=self.made, note="random weights", path=str(blank.resolve()),
                         architecture=self.architecture)
            put(ctx.engine.fit(self.lesson(), {"base": start, "examples": world}, ctx), folder, blank)
        copy_licenses([folder], ctx.folder)
        return seal("model", ctx.folder, identity=hash_folder(folder), name=self.made,
                    note=f"trained on a world of {self.of}", path=str(folder), architecture=self.architecture)
