"""Record the losses of UNA's own code: the oracle of `una` and `uft`.

    git clone https://github.com/ZhichaoWang970201/UNA-UFT && python scripts/make_una_fixture.py UNA-UFT

writes tests/fixtures/una.json: losses of rated pairs and of their halves, and their gradients, in float32. Of its files, which
train when they are imported, only the class with the loss is read.
"""

from __future__ import annotations
import __future__

import ast
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from _fixture import revision, write

FILES = {"mse": ("UNA_trainer_score_MSE_3e-5_0.03.py", "UNA_score"), "bce": ("UNA_trainer_binary_BCE_0.01.py", "UNA_BCE")}
# Log-probabilities of the policy and of the reference, of the better and of the worse answer; ratings, -1 for a half that is
# not there.
CASES = [("mse", 0.03, [-31.0, -40.0], [-35.5, -38.0], [0.9, 0.2]), ("mse", 0.3, [-31.0, -40.0], [-35.5, -38.0], [1.0, 0.0]),
         ("mse", 0.1, [-12.0, 0.0], [-9.0, 0.0], [1.0, -1.0]), ("mse", 0.1, [0.0, -12.0], [0.0, -19.0], [-1.0, 0.35]),
         ("bce", 0.1, [-31.0, -40.0], [-35.5, -38.0], [1.0, 0.0]), ("bce", 0.1, [-12.0, 0.0], [-9.0, 0.0], [1.0, -1.0])]


def trainer(folder: Path, file: str, name: str) -> type:
    """The class alone."""
    tree = ast.parse((folder / "Mistral-offline" / file).read_text(encoding="utf-8"))
    tree.body = [part for part in tree.body if isinstance(part, ast.ClassDef) and part.name == name]
    space = {"DPOTrainer": object, "torch": torch}
    exec(compile(tree, file, "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True), space)
    return space[name]


def record(folder: Path, fits: str, beta: float, policy: list[float], reference: list[float], ratings: list[float]) -> dict:
    """The sum over both halves."""
    asked = torch.tensor(policy, requires_grad=True)
    itself = SimpleNamespace(beta=beta, reference_free=False, loss_type="sigmoid", accelerator=SimpleNamespace(device="cpu"))
    losses, *_ = trainer(folder, *FILES[fits]).dpo_loss(itself, *asked[:, None], *torch.tensor(reference)[:, None],
                                                        *torch.tensor(ratings)[:, None])
    losses.sum().backward()
    return {"fits": fits, "beta": beta, "policy": policy, "reference": reference, "ratings": ratings,
            "loss": float(losses.detach().sum()), "gradient": asked.grad.tolist()}


if __name__ == "__main__":
    records = [record(Path(sys.argv[1]), *case) for case in CASES]
    write("una", __file__, {"ZhichaoWang970201/UNA-UFT": revision(sys.argv[1])}, records=records)
    print([r["loss"] for r in records])
