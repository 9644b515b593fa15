"""BitFit: only the bias terms move (about 0.1 % of an encoder's weights).

Source: Ben Zaken, Goldberg, Ravfogel 2021 (seed 153). Works where the model has biases: BERT and T5-like encoders do,
Llama and Gemma have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from luthier.core.kinds import Default
from luthier.techniques.methods._selective import Selective

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


class BitFit(Selective, name="bitfit", seeds=[153]):
    """Train bias terms only; leaves the biases that moved."""

    sought: ClassVar[tuple[str, str]] = ("bias", "bias terms")

    def found(self, model: Model) -> dict[str, torch.nn.Parameter]:
        return {n: p for n, p in model.module.named_parameters() if n.endswith("bias")}

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(1e-3, "Ben Zaken et al. 2021: 1e-4 to 1e-2, larger than full tuning")}
