"""Record what fairseq's criterion of R3F computes: the oracle of `r3f` and of the divergence that `smart` shares with it.

    git clone https://github.com/facebookresearch/fairseq && python scripts/make_r3f_fixture.py fairseq

writes tests/fixtures/r3f_fairseq.json: losses, divergences and gradients of a linear model, in float32. fairseq itself need not
be installed. Weights come from a formula, so that the fixture holds results only.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from _fixture import revision, wave, write
from torch import nn

IDS, WIDTH, LABELS = [[1, 2, 3], [4, 5, 6], [7, 7, 2]], 6, 3
CASES = [("uniform", 0.5, 1.0), ("normal", 0.3, 0.1), ("normal", 0.5, 5.0)]  # noise, its size, lambda


class Linear(nn.Module):
    """The mean of embedded words [12, 6] and a head, of shifts 0 and 1; labels are 0, 1, 2."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(12, WIDTH), nn.Linear(WIDTH, LABELS, bias=False)
        self.words.weight.data.copy_(wave(12, WIDTH))
        self.head.weight.data.copy_(wave(LABELS, WIDTH, shift=1.0, scale=2.0))
        self.encoder = SimpleNamespace(sentence_encoder=SimpleNamespace(embed_tokens=self.words))
        self.classification_heads, self.seen = {"it": None}, []

    def forward(self, src_tokens: torch.Tensor, token_embeddings: torch.Tensor, **named: object) -> tuple:
        self.seen.append(token_embeddings.detach())
        return self.head(token_embeddings.mean(1)), None

    def get_targets(self, sample: dict, outputs: object) -> torch.Tensor:
        return torch.arange(LABELS)


def record(kind: type, noise: str, size: float, weight: float) -> dict:
    """The noise is what it drew."""
    model, criterion = Linear().train(), object.__new__(kind)
    torch.manual_seed(1)
    kind.__init__(criterion, None, size, weight, noise, "it", False)
    loss, count, told = criterion(model, {"net_input": {"src_tokens": torch.tensor(IDS)}, "ntokens": 9})
    loss.backward()
    plain, noised = model.seen
    return {"noise": (noised - plain).flatten().tolist(), "lam": weight, "loss": float(loss.detach()), "units": count,
            "divergence": float(told["symm_kl"]),
            "gradients": [p.grad.flatten().tolist() for p in (model.words.weight, model.head.weight)]}


if __name__ == "__main__":
    class Criterion:
        """What it is called by."""

        def __init__(self, task: object) -> None:
            self.task = task

        def __call__(self, *given: object) -> tuple:
            return self.forward(*given)

    sys.modules["fairseq"] = MagicMock(utils=SimpleNamespace(item=float))
    sys.modules["fairseq.criterions"] = MagicMock(FairseqCriterion=Criterion, register_criterion=lambda name: lambda kind: kind)
    file = Path(sys.argv[1]) / "examples" / "rxf" / "rxf_src" / "sentence_prediction_r3f.py"
    spec = importlib.util.spec_from_file_location("r3f", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    records = [record(module.SentencePredictionR3F, *case) for case in CASES]
    write("r3f_fairseq", __file__, {"facebookresearch/fairseq": revision(sys.argv[1])}, ids=IDS, records=records)
    print([(r["loss"], r["divergence"]) for r in records])
