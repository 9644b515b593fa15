"""Record what the adapters of PETL_AST's authors compute: the oracle of `adapter` with block conformer.

    git clone https://github.com/umbertocappellazzo/PETL_AST && python scripts/make_petl_ast_fixture.py PETL_AST

writes tests/fixtures/petl_ast.json: answers of its blocks while training and afterwards, and gradients, in float32. Its models
are not needed and left out; weights come from a formula, so that the fixture holds results only.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import torch
from _fixture import revision, wave, write
from torch import nn

WIDTH, SHAPE = 8, (2, 6, 8)  # rows, places, width
CASES = [("bottleneck", 2, 1), ("conformer", 2, 3), ("conformer", 4, 5)]  # block, reduction, kernel


def record(module: ModuleType, block: str, reduction: int, kernel: int) -> dict:
    """Weight n is the wave of shift n, in the order of the computation; x has the shift 0.6, the gradients' sum 0.9."""
    if block == "conformer":
        made = module.Conformer_adapter(WIDTH, WIDTH, kernel, 0.0, reduction)
        parts = [made.pwise_conv1, made.dwise_conv, made.bnorm, made.pwise_conv2]
    else:
        made = module.Bottleneck_adapter(WIDTH, reduction, WIDTH)
        parts = [made.linear_downsample, made.linear_upsample]
    weights = [p for part in parts for p in (part.weight, part.bias)]
    with torch.no_grad():
        for n, p in enumerate(weights):
            p.copy_(wave(*p.shape, shift=n))
    x = wave(*SHAPE, shift=0.6, scale=2.0)
    out = made.train()(x)
    gradients = torch.autograd.grad((out * wave(*SHAPE, shift=0.9)).sum(), weights)
    return {"block": block, "reduction": reduction, "kernel": kernel, "training": out.detach().flatten().tolist(),
            "after": made.eval()(x).detach().flatten().tolist(), "gradients": [g.flatten().tolist() for g in gradients]}


if __name__ == "__main__":
    names = ("ASTModel", "ASTLayer", "ASTEncoder", "ASTOutput")
    for name in ("transformers", "transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer"):
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update({n: type(n, (nn.Module,), {}) for n in names})
    sys.path.insert(0, str(Path(sys.argv[1]) / "src"))
    found = importlib.import_module("AST_adapters")
    records = [record(found, *case) for case in CASES]
    write("petl_ast", __file__, {"umbertocappellazzo/PETL_AST": revision(sys.argv[1])}, width=WIDTH, shape=SHAPE,
          records=records)
    print(f"{len(records)} cases")
