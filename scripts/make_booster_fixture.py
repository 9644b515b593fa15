"""Record the gradients of Booster's own training step: the oracle of `booster`.

    git clone https://github.com/git-disl/Booster && python scripts/make_booster_fixture.py Booster

writes tests/fixtures/booster.json: gradients and weights after a step on bowls, in float32. What the code imports for its
training need not be installed.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from _fixture import revision, write
from torch import nn

START, CURVATURE = [1.0, -2.0, 0.5], [[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]]
CASES = [(5.0, 0.1), (3.0, 0.2), (20.0, 0.01)]  # lambda, alpha


class Weights(nn.Module):
    """f = |w - 1|² / 2 for the alignment, h = w' H w / 2 for what is against it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(START))

    def loss(self, against: bool) -> torch.Tensor:
        """The one or the other."""
        return 0.5 * self.w @ (torch.tensor(CURVATURE) @ self.w) if against else 0.5 * (self.w - 1).square().sum()


def record(kind: type, lam: float, alpha: float) -> dict:
    """One step."""
    model = Weights()
    itself = SimpleNamespace(
        args=SimpleNamespace(alpha=alpha, lamb=lam, perturb_aware="False", gradient_accumulation_steps=1), steps=0,
        use_apex=False, accelerator=SimpleNamespace(backward=lambda loss: loss.backward()), _prepare_inputs=lambda given: given,
        sample_from_harmful=lambda: True, compute_loss_context_manager=nullcontext,
        compute_loss=lambda model, against: model.loss(against), _grad_norm=lambda grads: kind._grad_norm(None, grads))
    kind.training_step(itself, model, False)
    return {"lam": lam, "alpha": alpha, "gradient": model.w.grad.tolist(), "weights": model.w.tolist()}


if __name__ == "__main__":
    models = ("llama", "opt", "mistral", "gemma", "gemma2", "qwen2")
    for name in ("utils", "loss_func", "loss_func.repnoise_loss", "transformers", "transformers.trainer_pt_utils",
                 "transformers.utils", "transformers.models", *(f"transformers.models.{m}.modeling_{m}" for m in models),
                 *(f"transformers.models.{m}" for m in models)):
        sys.modules[name] = MagicMock(Trainer=object)
    sys.path.insert(0, sys.argv[1])
    found = importlib.import_module("trainer").BoosterAlignmentTrainer
    records = [record(found, *case) for case in CASES]
    write("booster", __file__, {"git-disl/Booster": revision(sys.argv[1])}, start=START, curvature=CURVATURE, records=records)
    print([r["gradient"] for r in records])
