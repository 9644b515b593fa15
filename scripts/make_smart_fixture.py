"""Record what the code of SMART's authors computes: the oracle of `smart` with scheme released.

    git clone https://github.com/namisan/mt-dnn && python scripts/make_smart_fixture.py mt-dnn

writes tests/fixtures/smart.json: moves of embeddings, the gradients along which they went, and the smoothness there, of a
linear model, in float32. The noise is a wave in place of a draw, of a size at which the gradient counts.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import torch
from _fixture import revision, wave, write

ROWS, TOKENS, WIDTH, LABELS = 2, 3, 6, 3
CASES = [(1e-5, 1e-3), (0.05, 1.0), (0.3, 2.0)]  # sigma, eta


def record(module: ModuleType, criterion: object, sigma: float, eta: float) -> dict:
    """Embeddings have the shift 0, the head [labels, width] 1, noise 2; the model is the head of their mean."""
    head, x = wave(LABELS, WIDTH, shift=1.0, scale=2.0), wave(ROWS, TOKENS, WIDTH)
    seen, gradients = [], []

    def model(*given: object) -> torch.Tensor:
        if given[6] == 1:
            return x
        seen.append(given[7].detach() - x)
        return given[7].mean(1) @ head.T

    module.generate_noise = lambda embed, mask, epsilon: (
        epsilon * wave(*embed.shape, shift=2.0, scale=1.0)).requires_grad_(True)
    it = module.SmartPerturbation(step_size=eta, noise_var=sigma, loss_map=[criterion])
    own = it._norm_grad
    it._norm_grad = lambda grad, **named: (gradients.append(named["eff_grad"] / eta), own(grad, **named))[1]
    clean = x.mean(1) @ head.T
    loss = it.forward(model, clean, None, None, None)[0].detach()
    return {"sigma": sigma, "eta": eta, "gradient": gradients[0].flatten().tolist(), "move": seen[-1].flatten().tolist(),
            "smoothness": float(loss)}


if __name__ == "__main__":
    for name in ("data_utils", "mt_dnn"):  # their own __init__ imports all of it
        package = ModuleType(name)
        package.__path__ = [str(Path(sys.argv[1]) / name)]
        sys.modules[name] = package
    found = importlib.import_module("mt_dnn.perturbation")
    records = [record(found, importlib.import_module("mt_dnn.loss").SymKlCriterion(), *case) for case in CASES]
    write("smart", __file__, {"namisan/mt-dnn": revision(sys.argv[1])}, sizes=[ROWS, TOKENS, WIDTH, LABELS], records=records)
    print([r["smoothness"] for r in records])
