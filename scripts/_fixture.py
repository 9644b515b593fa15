"""What the scripts share that record the numbers of another implementation: inputs by a formula, and the file they leave.

A script runs where the other implementation is installed, or is given a clone of it; nothing of this package is imported.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "fixtures"
FREQUENCY = 0.37


def wave(*shape: int, shift: float = 0.0, scale: float = 0.4) -> torch.Tensor:
    """scale sin(0.37 i + shift) in float32, i the place of an entry in the flattened tensor [*shape]."""
    at = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    return (scale * torch.sin(FREQUENCY * at + shift)).float()


def fill(module: torch.nn.Module, shift: float = 0.0) -> None:
    """Weight k of the sorted names is the wave of shift k + `shift`, and one more where its name has a norm's weight."""
    with torch.no_grad():
        for k, (name, p) in enumerate(sorted(module.named_parameters())):
            p.copy_(wave(*p.shape, shift=k + shift) + (name.lower().endswith("norm.weight")))


def revision(clone: str) -> str:
    """The commit that a clone is at."""
    return subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def write(name: str, script: str, versions: dict[str, str], **content: Any) -> None:
    """tests/fixtures/NAME.json, a list of numbers in a line."""
    made = {"made_by": f"scripts/{Path(script).name}", "versions": {**versions, "torch": torch.__version__}, **content}
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), json.dumps(made, indent=1))
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
