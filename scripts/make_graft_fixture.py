"""Record the masks of the code of skill grafting's authors: the oracle of `graft`.

    git clone https://github.com/abhishekpanigrahi1996/Skill-Localization-by-grafting && python scripts/make_graft_fixture.py \\
        Skill-Localization-by-grafting

writes tests/fixtures/graft.json: the first mask, and the real mask before and after steps of its training on a model of one
sum, in float32. What the code imports for its data and metrics need not be installed.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from _fixture import revision, wave, write
from torch import nn

SHAPES = {"layers.0.weight": (6, 8), "layers.1.weight": (5, 7)}
SPARSITIES, RATE, STEPS, BIAS = (0.1, 0.22), 2e4, 3, 10.0


class Sum(nn.Module):
    """loss = (sum of weights times the wave of shift 3 + k, less 1)²."""

    def __init__(self, shift: float, size: float) -> None:
        super().__init__()
        for k, (name, shape) in enumerate(SHAPES.items()):
            made = wave(*shape, shift=k) + wave(*shape, shift=k + shift, scale=size)
            self.register_parameter(name.replace(".", "_"), nn.Parameter(made))

    def forward(self, **given: object) -> SimpleNamespace:
        said = sum((p * wave(*p.shape, shift=3.0 + k)).sum() for k, p in enumerate(self.parameters()))
        return SimpleNamespace(loss=(said - 1).square())


def record(kind: type, sparsity: float) -> dict:
    """The tune differs from the base by waves of shift 0.7 and size 0.05."""
    grafting = kind.__new__(kind)
    nn.Module.__init__(grafting)
    base, tuned, model = Sum(0.0, 0.0), Sum(0.7, 0.05), Sum(0.0, 0.0)
    grafting.model, grafting.params = model, dict(model.named_parameters())
    grafting.args = SimpleNamespace(sigmoid_bias=BIAS, learning_rate=RATE, num_train_epochs=1, gradient_accumulation_steps=1)
    grafting.augment_models(base, tuned, SimpleNamespace(mask_path="highest_movement", sparsity_level=sparsity,
                                                         checkpoint_location="", few_shot_type="finetune",
                                                         use_CLS_linearhead=0), "cpu")
    torch.manual_seed(0)
    grafting.create_binary_masks()
    grafting.create_basepatch()
    grafting.evaluate = lambda *given, **named: SimpleNamespace(compute=lambda: {"accuracy": 0.0})
    real = [[t.flatten().tolist() for t in grafting.trainable_parameters]]
    batch = dict.fromkeys(("input_ids", "attention_mask", "labels"), torch.zeros(1))
    for _ in range(STEPS):
        grafting.train_graft([batch], None, None, False, "sst-2")
        real.append([t.flatten().tolist() for t in grafting.trainable_parameters])
    return {"sparsity": sparsity, "first": [m.flatten().int().tolist() for m in grafting.basepatch], "real": real}


if __name__ == "__main__":
    sys.modules["datasets"] = MagicMock()
    sys.path.insert(0, str(Path(sys.argv[1]) / "src"))
    found = importlib.import_module("graft_trainer").graft_Trainer
    records = [record(found, sparsity) for sparsity in SPARSITIES]
    write("graft", __file__, {"Skill-Localization-by-grafting": revision(sys.argv[1])}, shapes=SHAPES, rate=RATE, bias=BIAS,
          records=records)
    print([sum(map(sum, r["first"])) for r in records])
