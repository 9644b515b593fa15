"""DPO: -log σ(β [(log π(chosen) - log ρ(chosen)) - (log π(rejected) - log ρ(rejected))]), mean over pairs.

π is the policy, ρ the frozen reference, log-probabilities are sums over the tokens of an answer, each [rows]. The
optimum is the policy of a reward model fitted to the same pairs under a KL penalty of weight β. When it helps: pairs of
answers of which one is better, and no reward model. Source: Rafailov et al. 2023, equation 7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.techniques.objectives._shared import Preference

if TYPE_CHECKING:
    import torch


class Dpo(Preference, name="dpo"):
    """Learn to prefer the chosen answer to the rejected one, held to a reference."""

    def pair_loss(self, policy_chosen: torch.Tensor, policy_rejected: torch.Tensor, reference_chosen: torch.Tensor,
                  reference_rejected: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(self.beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)))
