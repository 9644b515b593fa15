"""R3F: predictions that stay what they are when embeddings are noised.

    L + lam · 1/n sum_i [ KL(p(x_i) || p(x_i + z)) + KL(p(x_i + z) || p(x_i)) ]

x [tokens, width] are embedded words, z is uniform on (-s, s) or normal of deviation s, n counts rows, or the learned tokens of
a language model. Both passes are made for it: without dropout, or with the same masks in both, since with masks of their own
the divergence would measure dropout. The paper's s = 1e-5 is far below what embeddings measure; `unit: rms` gives s in their
root mean squares instead. Options to choose from (`choose`) are noised all together, and p is the soft-max over a row's own.
With `where: labels` rows without a label to be told are left alone, as Muppet does.

When it helps: fine-tuning that must not lose what the representations hold; half of Muppet. Source: Aghajanyan et al. 2020,
arXiv 2008.03156; Aghajanyan et al. 2021, arXiv 2101.11038.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from luthier.core.kinds import Hook, Regularizer
from luthier.core.step import FitCtx
from luthier.techniques.training._passes import (
    apart,
    chooses,
    divergence,
    embedded,
    embedding_rms,
    noise,
    normal,
    predicted,
    require_embeds,
    sequence_of,
    units,
)

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.models import Model


class R3f(Regularizer, name="r3f", seeds=[16]):
    """Hold predictions where embeddings are noised."""

    lam: float = Field(0.1, ge=0, description="weight of the divergence")
    noise: Literal["uniform", "normal"] = Field("uniform", description="how z is drawn")
    s: float = Field(1e-5, ge=0, description="its size")
    unit: Literal["absolute", "rms"] = Field("absolute", description="of s: rms is the root mean square of the embeddings")
    where: Literal["all", "labels"] = Field("all", description="rows that it holds: all, or those with a label or options")
    dropout: Literal["shared", "none"] = Field("shared", description="in both passes: the same masks, or none")

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        """Raises UserError for a model that does not take embeddings."""
        if not self.lam:
            return Hook()
        require_embeds("r3f", model)
        return Noised(self, self.s * (embedding_rms(model) if self.unit == "rms" else 1.0), ctx)


class Noised(Hook):
    """Adds the part `r3f`."""

    def __init__(self, spec: R3f, size: float, ctx: FitCtx) -> None:
        assert ctx.clock is not None
        self.spec, self.size, self.clock, self.rng = spec, size, ctx.clock, ctx.rng.within("r3f")

    def units(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """The part is a mean over the units."""
        if self._left_alone(batch):
            return {}
        return {"r3f": float(len(batch["options"]) if chooses(batch) else units(sequence_of("r3f", batch)))}

    def on_loss(self, run: Forward, batch: Mapping[str, Any], parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        from luthier.engine.choices import by_row, options_of

        if self._left_alone(batch):
            return parts
        inputs, model = options_of(batch) if chooses(batch) else sequence_of("r3f", batch), run.models["policy"]
        # Options stand one after another: the first of each row, then the second of each.
        ids = batch["ids"] if not chooses(batch) else [f"{row}/{n}" for n in range(len(inputs) // len(batch["ids"]))
                                                       for row in batch["ids"]]
        seed = self.rng.key("dropout", f"{self.clock.step}/{batch['ids'][0]}") if self.spec.dropout == "shared" else None
        said = []
        for noised in (False, True):
            with apart(run, seed):
                x = embedded(model, inputs)
                if noised:
                    z = noise(uniform if self.spec.noise == "uniform" else normal, self.rng, "noise", self.clock.step,
                              ids, x, inputs.mask)
                    x = (x.float() + self.size * z).to(x.dtype)
                scores = predicted(run, inputs, x)
                said.append(by_row(scores, batch) if chooses(batch) else scores)
        far = divergence(*said)
        run.measure(noised=far)
        return {**parts, "r3f": self.spec.lam * far.sum()}

    def _left_alone(self, batch: Mapping[str, Any]) -> bool:
        return self.spec.where == "labels" and "label" not in batch


def uniform(generator: torch.Generator, tokens: int, width: int) -> torch.Tensor:
    """[tokens, width] from -1 to 1."""
    import torch

    return 2 * torch.rand(tokens, width, generator=generator) - 1
