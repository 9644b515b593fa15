"""chosen-index: of two indexes the one that was made with the encoder that was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError
from luthier.core.step import Ctx, Step
from luthier.pipelines.steps.whole_model import same_files


class ChosenIndex(Step, name="chosen-index"):
    """The index that belongs to the chosen encoder."""

    inputs: ClassVar[dict[str, str]] = {"encoder": "model", "index": "index", "tuned-index": "index"}
    output: ClassVar[str] = "index"
    seeded: ClassVar[bool] = False

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Link the files of the one that was made with this encoder.

        Raises:
            UserError: neither was.
        """
        wanted = inputs["encoder"].identity
        for name in ("index", "tuned-index"):
            if inputs[name].meta["encoder"]["identity"] == wanted:
                return same_files(inputs[name], ctx)
        raise UserError("Neither index was made with the chosen encoder. Run the same command with --fresh.")
