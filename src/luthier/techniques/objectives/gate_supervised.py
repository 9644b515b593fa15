"""Gate-supervised: language modelling on all tokens, and every gate learns the task of its row.

    L = mean over tokens of -log p(token | before) + beta mean over tokens and gates of -log softmax(g)[adapter of the row]

Prompt and answer count alike, padding does not. The row says its adapter under the key `task`. When it helps: gates
over adapters of known tasks (`--method meteora`). Source: Xu et al. 2024, arXiv 2405.13053 (seed 109); beta = 50 in the
released code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.example import Example
from luthier.core.kinds import Features, Objective, Tokens
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render


class GateSupervised(Objective, name="gate-supervised", seeds=[109]):
    """Learn texts and, in every gate, which adapter they belong to."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"nll": "additive", "gate": "additive"}
    architectures: ClassVar[tuple[Any, ...]] = ("decoder",)
    beta: float = Field(50.0, ge=0, description="weight of the gates' loss; 0 needs no tasks")

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        """Raises UserError for a row without the task of an adapter."""
        tokens = render.tokens(example)
        features: Features = {"input": Tokens(tokens.ids, [False] + [True] * (len(tokens.ids) - 1))}
        return {**features, "route": render.route_id(example)} if self.beta else features

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        nll = {"nll": batch["input"].learned}
        return {**nll, "gate": batch["input"].tokens} if self.beta else nll

    def coefficients(self) -> dict[str, float]:
        return {"gate": self.beta}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        import torch

        said = run("policy", batch["input"], routes=bool(self.beta))
        parts = {"nll": said.nll().sum()}
        if not self.beta:
            return parts
        real = batch["input"].mask.bool()
        labels = batch["route"][:, None].expand(real.shape)[real]
        logits = torch.stack([gate.logits[real] for gate in said.routes()])  # [gates, tokens, adapters]
        each = -logits.log_softmax(-1)[:, torch.arange(len(labels), device=labels.device), labels]
        run.measure(gate_accuracy=(logits.argmax(-1) == labels).float().mean(0))
        return {**parts, "gate": each.mean(0).sum()}
