"""Logistic head: labels = softmax(W x + b), fitted to frozen features x by minimising

    ||W||² / 2 + C sum over rows of w_label (-log p(label)),   b free of cost, w = 1, or N / (K N_label) where balanced

by L-BFGS in float64: scikit-learn's LogisticRegression. Two labels share one vector, its negative side at 0; several labels a
row (joined by "|") are so many independent ones. `normalize`: features of length 1.

When it helps: few rows, and features that are good already. Source: Tunstall et al. 2022, arXiv 2209.11055 (seed 208).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Head

if TYPE_CHECKING:
    import numpy as np
    import torch

    from luthier.engine.models import Model

BETWEEN = "|"


class LogisticHead(Head, name="logistic", seeds=[208]):
    """Logistic regression on what a frozen encoder says."""

    inverse_penalty: float = Field(1.0, gt=0, description="C: larger holds W less")
    balanced: bool = Field(False, description="every label weighs the same, however many rows it has")
    normalize: bool = Field(False, description="features are scaled to length 1")
    multi_label: bool = Field(False, description="a row may have several labels, joined by |, or none of some")
    max_iterations: int = Field(100, ge=1, description="most iterations of L-BFGS")

    def build(self, body: Model, labels: Sequence[str]) -> torch.nn.Module:
        from torch import nn

        from luthier.techniques.models._queries import Unit

        linear = nn.Linear(body.width, len(labels) or 1)
        return nn.Sequential(Unit(), linear) if self.normalize else linear

    def label(self, probabilities: Mapping[str, float]) -> str:
        """The likeliest label; of several those of at least a half, joined by |."""
        if not self.multi_label:
            return super().label(probabilities)
        return BETWEEN.join(name for name, chance in probabilities.items() if chance >= 0.5)

    def predict(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.float().sigmoid() if self.multi_label else outputs.float().softmax(-1)

    def labels_of(self, given: Sequence[str]) -> list[str]:
        """The labels there are. Raises UserError for fewer than two."""
        found = sorted({part for label in given for part in (label.split(BETWEEN) if self.multi_label else [label]) if part})
        if len(found) < 2 and not (self.multi_label and found):
            raise UserError(f"logistic: the rows have {len(found)} label(s); a classifier needs at least 2.")
        joined = next((label for label in found if BETWEEN in label), None)
        if not self.multi_label and joined is not None:
            raise UserError(f"logistic: the label '{joined}' looks like several. Say multi_label: true where a row may have "
                            "more than one.")
        return found

    def fit(self, module: Any, features: torch.Tensor, given: Sequence[str], labels: Sequence[str]) -> None:
        """Fill the module with what fits features [rows, width] to a label of each row."""
        import numpy as np
        import torch

        x = features.double().numpy()
        if self.normalize:
            x = x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)
        if self.multi_label:
            solved = [self._solved(x, np.array([name in g.split(BETWEEN) for g in given], dtype=int), 2) for name in labels]
            weight, bias = np.concatenate([w for w, _ in solved]), np.concatenate([b for _, b in solved])
        else:
            wanted = np.array([list(labels).index(g) for g in given])
            weight, bias = self._solved(x, wanted, len(labels))
            if len(labels) == 2:
                weight, bias = np.stack([0 * weight[0], weight[0]]), np.array([0.0, bias[0]])
        linear: Any = module[-1] if isinstance(module, torch.nn.Sequential) else module
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight))
            linear.bias.copy_(torch.from_numpy(bias))

    def _solved(self, x: np.ndarray, wanted: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
        """W [classes, width] and b [classes]; of two classes the second's alone, the first being 0."""
        import numpy as np
        from scipy.optimize import minimize
        from scipy.special import log_softmax

        rows, width = x.shape
        counts = np.bincount(wanted, minlength=classes)
        cost = self.inverse_penalty * (rows / (classes * counts.clip(1))[wanted] if self.balanced else np.ones(rows))
        kept = 1 if classes == 2 else classes
        truth = np.eye(classes)[wanted]

        def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
            w, b = flat[:kept * width].reshape(kept, width), flat[kept * width:]
            scores = x @ w.T + b
            if classes == 2:
                scores = np.concatenate([np.zeros((rows, 1)), scores], 1)
            logs = log_softmax(scores, axis=1)
            back = cost[:, None] * (np.exp(logs) - truth)
            back = back[:, 1:] if classes == 2 else back
            loss = (w ** 2).sum() / 2 - (cost * (logs * truth).sum(1)).sum()
            return float(loss), np.concatenate([(back.T @ x + w).ravel(), back.sum(0)])

        found = minimize(value, np.zeros(kept * (width + 1)), jac=True, method="L-BFGS-B",
                         options={"maxiter": self.max_iterations, "gtol": 1e-6, "ftol": 1e-14})
        return found.x[:kept * width].reshape(kept, width), found.x[kept * width:]
