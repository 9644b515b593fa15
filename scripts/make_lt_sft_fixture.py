"""Record which entries the code of LT-SFT's authors chooses: the oracle of `lt-sft`.

    git clone https://github.com/cambridgeltl/composable-sft && python scripts/make_lt_sft_fixture.py composable-sft

writes tests/fixtures/lt_sft.json: places of the chosen entries, for changes that come from a formula. What the code imports for
its data need not be installed.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import torch
from _fixture import revision, wave, write
from torch import nn

SHAPES = {"one": (7, 9), "two": (11,), "whole": (4, 5)}  # the last is not maskable
COUNTS = (1, 10, 40)


def record(kind: type, count: int) -> dict:
    """Tensor n was the wave of shift n and has moved by the wave of shift n + 0.5 and size 0.01 (n + 1)."""
    model = nn.ParameterDict({n: nn.Parameter(wave(*shape, shift=k)) for k, (n, shape) in enumerate(SHAPES.items())})
    before = {n: p.detach().clone() for n, p in model.items()}
    with torch.no_grad():
        for k, (name, shape) in enumerate(SHAPES.items()):
            model[name].add_(wave(*shape, shift=k + 0.5, scale=0.01 * (k + 1)))
    maskable = {"one", "two"}
    masks = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.items() if n in maskable}
    itself = SimpleNamespace(model=model, maskable_params=maskable, _original_params=before, _mask=masks,
                             args=SimpleNamespace(local_rank=0, disable_tqdm=True))
    kind.unfreeze_k_most_changed_params(itself, count)
    return {"count": count, "places": {n: m.flatten().nonzero()[:, 0].tolist() for n, m in masks.items()}}


if __name__ == "__main__":
    for name in ("datasets", "transformers"):
        sys.modules[name] = MagicMock(TrainerCallback=object, Trainer=object)
    package = ModuleType("sft")  # its own __init__ imports all of it
    package.__path__ = [str(Path(sys.argv[1]) / "src" / "sft")]
    sys.modules["sft"] = package
    for name in ("sft_args", "utils"):
        sys.modules[f"sft.{name}"] = MagicMock()
    found = importlib.import_module("sft.lt_sft").LotteryTicketSparseFineTuner(object)
    records = [record(found, count) for count in COUNTS]
    write("lt_sft", __file__, {"cambridgeltl/composable-sft": revision(sys.argv[1])}, shapes=SHAPES, records=records)
    print([{n: len(p) for n, p in r["places"].items()} for r in records])
