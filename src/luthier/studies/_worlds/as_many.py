"""as-many: a graft with exactly as many entries as another one, the input `like`, chosen without a look at any row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.finding import Finding, receipt
from luthier.core.step import Ctx, Step

if TYPE_CHECKING:
    import torch


class AsMany(Step, name="as-many"):
    """The largest changes of a tune, or entries at random, as many as `like` has."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "like": "delta", "tuned": "model"}
    output: ClassVar[str] = "delta"
    trains: ClassVar[bool] = True  # which entries are drawn is a chance that is judged over
    start: Literal["magnitude", "random"] = Field("random", description="which entries")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Count the entries of `like`, choose as many of all numbered layers, and write what the tune has there."""
        from safetensors.torch import save_file

        from luthier.engine.deltas import FILE
        from luthier.engine.models import folder_of
        from luthier.engine.weight_sources import Stored
        from luthier.techniques.weights._shared import numbered

        base, tuned = Stored(folder_of(inputs["base"])), Stored(inputs["tuned"].folder)
        pairs = {n: (base.read(n), tuned.read(n)) for n in base.specs if numbered(n)}
        made: dict[str, torch.Tensor] = {}
        for name, at in self._chosen(pairs, entries(inputs["like"]), ctx).items():
            was, values = (t.flatten()[at].contiguous() for t in pairs[name])
            made |= {f"{name}:at": at, f"{name}:values": values, f"{name}:was": was}
        save_file(made, ctx.folder / FILE)
        copy_licenses([inputs["like"].folder], ctx.folder)
        like = inputs["like"].meta
        return seal("delta", ctx.folder, base=like["base"], template=like["template"], heads={}, labels={})

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """As many entries as the other graft has."""
        return [receipt("as-many/entries", entries(inputs["like"]), entries(artifact), unit="entries")]

    def _chosen(self, pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]], count: int, ctx: Ctx) -> dict[str, torch.Tensor]:
        """[n] int64 places of each tensor that has any."""
        import torch

        from luthier.engine.sparse import largest

        if self.start == "magnitude":
            scores = {n: (two.float() - one.float()).abs() for n, (one, two) in pairs.items()}
        else:
            scores = {n: torch.from_numpy(ctx.rng("as-many", n).random(tuple(one.shape))) for n, (one, _) in pairs.items()}
        masks = largest(scores, count)
        return {n: at for n, mask in masks.items() if len(at := mask.flatten().nonzero()[:, 0])}


def places(graft: Artifact) -> dict[str, set[int]]:
    """The entries of each tensor that a graft changes, counted through the flattened tensor."""
    from luthier.engine.deltas import FILE
    from luthier.engine.weight_sources import Stored

    held = Stored(graft.folder / FILE)
    return {n.removesuffix(":at"): set(held.read(n).tolist()) for n in held.specs if n.endswith(":at")}


def entries(graft: Artifact) -> int:
    """How many entries a graft changes."""
    return sum(map(len, places(graft).values()))
