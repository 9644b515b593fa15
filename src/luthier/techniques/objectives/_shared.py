"""What preference objectives share: pairs of answers, their log-probabilities, rewards and what is reported of them.

A row is one prompt with a chosen and a rejected answer. With π the policy and ρ the frozen reference, the family is a
function of four numbers a row, each [rows]: log π(chosen), log π(rejected), log ρ(chosen), log ρ(rejected), summed over
the learned tokens of an answer, its stop token included. A member of the family is that function (`pair_loss`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.example import Dropped, Example, with_rejected
from luthier.core.kinds import DroppedRow, Features, Objective
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render

SIDES = ("chosen", "rejected")


class Preference(Objective):
    """Learn which of two answers is better, against a frozen reference: the base, unless a role names another model.

    The curve shows `margin`, the mean of reward(chosen) - reward(rejected) with reward = beta (log π - log ρ), and
    `accuracy`, the share of rows where it is above 0.
    """

    roles: ClassVar[tuple[str, ...]] = ("reference",)
    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"preference": "additive"}
    beta: float = Field(0.1, gt=0, description="how strongly the policy is held to the reference; reward per nat")
    reference_once: bool = Field(True, description="ask the reference once before training, not at every step")

    @abstractmethod
    def pair_loss(self, policy_chosen: torch.Tensor, policy_rejected: torch.Tensor, reference_chosen: torch.Tensor,
                  reference_rejected: torch.Tensor) -> torch.Tensor:
        """[rows] loss of each pair from log-probabilities [rows]."""

    def rows(self, example: Example, render: Render, rng: Rng) -> list[Features]:
        return [self.encode(example, render, rng)]  # a pair can't be divided, whatever is done with long rows

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        if example.rejected is None:
            raise DroppedRow(Dropped(example.id, "no rejected answer", "a preference needs chosen and rejected"))
        chosen, rejected = render.tokens(example), render.tokens(with_rejected(example))
        if chosen == rejected:
            raise DroppedRow(Dropped(example.id, "no preference", "chosen and rejected are the same tokens"))
        return {"chosen": chosen, "rejected": rejected}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"preference": len(batch["chosen"])}

    def live_roles(self) -> tuple[str, ...]:
        return () if self.reference_once else self.roles

    def constants(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {f"reference_{side}": said for side, said in zip(SIDES, _said(run, "reference", batch), strict=True)}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        chosen, rejected = _said(run, "policy", batch)
        known = batch if "reference_chosen" in batch else self.constants(run, batch)
        reference = (known["reference_chosen"], known["reference_rejected"])
        margin = self.beta * ((chosen - reference[0]) - (rejected - reference[1]))
        run.measure(margin=margin, accuracy=(margin > 0).float())
        return {"preference": self.pair_loss(chosen, rejected, *reference).sum()}


def _said(run: Forward, role: str, batch: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """Log-probabilities [rows] of both answers; one forward, so that a prompt that they share is read once."""
    from luthier.engine.batches import join

    return run(role, join(*(batch[side] for side in SIDES))).row_log_probabilities().chunk(2)
