"""L2M's objective: the answers token by token, and the key of each row's entry is pulled to the row.

    L = mean over learned tokens of -log p(token | before) - pull mean over rows of cos(q, k_j)

j is the entry that the row takes in a pool (`--method l2m`); of the keys only k_j moves. Source: Schmied et al. 2023, arXiv
2306.14884 (seed 129), with pull = 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.kinds import Features, Objective
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render


class Modulated(Objective, name="l2m", seeds=[129]):
    """Learn to give the answers, and which inputs an entry of the pool is for."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"nll": "additive", "pull": "additive"}
    pull: float = Field(0.5, ge=0, description="weight of the keys' likeness to their rows")

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        return {"input": render.tokens(example)}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"nll": batch["input"].learned, "pull": len(batch["input"])}

    def coefficients(self) -> dict[str, float]:
        return {"pull": self.pull}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Raises UserError for a model without a pool."""
        from luthier.engine import routing

        keys = routing.chooser(run.models["policy"])
        if keys is None:
            raise UserError("This objective pulls the keys of a pool, and the method has none. Use --method l2m.")
        return {"nll": run("policy", batch["input"]).nll().sum(), "pull": -keys.likeness(batch["input"])[0].sum()}
