"""join-models: a picture encoder and a language model as one model, with a projector between them that knows nothing yet."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.finding import Finding, receipt
from luthier.core.kinds import Body
from luthier.core.step import Ctx, Step

WEIGHTS = "weights"


class JoinModels(Step, name="join-models"):
    """Write the joined model; both stay as they are."""

    inputs: ClassVar[dict[str, str]] = {"vision": "model", "language": "model"}
    output: ClassVar[str] = "model"
    seeded: ClassVar[bool] = False
    body: Slot[Body] = Field(named("llava"), description="how the models are joined")

    def check(self) -> None:
        """Refuse a body that only names the parts of models."""
        if not hasattr(self.body, "make"):
            raise UserError(f"join-models: '{self.body.info.name}' joins no models; legal: llava.")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError for a language model that writes no text."""
        from luthier.engine.models import folder_of

        vision, language = inputs["vision"], inputs["language"]
        if language.meta["architecture"] != "decoder":
            kind = language.meta["architecture"]
            raise UserError(f"join-models: {language.meta['name']} is an {kind}; the language model is "
                            "a decoder.")
        shutil.rmtree(ctx.folder / WEIGHTS, ignore_errors=True)  # of an attempt that was killed
        (ctx.folder / WEIGHTS).mkdir()
        self.body.make(folder_of(vision), folder_of(language), ctx.folder / WEIGHTS)  # type: ignore[attr-defined]
        copy_licenses([vision.folder, language.folder], ctx.folder)
        return seal("model", ctx.folder, name=f"{language.meta['name']}+{vision.meta['name']}", note="joined, not tuned yet",
                    path=WEIGHTS, architecture="decoder",
                    joined={side: {"name": a.meta["name"], "identity": a.identity} for side, a in inputs.items()})

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Without a picture the joined model says what its language model says."""
        import torch

        apart, joined = (ctx.engine.load(a, dtype=torch.float32) for a in (inputs["language"], artifact))
        ids = [i % apart.vocabulary for i in range(5, 21)]
        (one,), (two,) = (ctx.engine.score(m, [(ids[:1], ids[1:])]) for m in (apart, joined))
        # The language model has no token for pictures: what the new row takes of the probability is the difference allowed.
        return [receipt("join-models/language", one[0], two[0], 2e-2 * max(1.0, abs(one[0])), unit="nats",
                        detail="log-probability of a few tokens by the language model and by the joined one")]
