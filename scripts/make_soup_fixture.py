"""Record the soups of model-soups' own code: the oracle of `model-soup`.

    git clone https://github.com/mlfoundations/model-soups && python scripts/make_soup_fixture.py model-soups

writes tests/fixtures/soups.json: members of greedy soups of 72 small models, in the order in which they joined, and the weights
of the greedy and the uniform soups. Models come from a formula; their score is a formula too, in place of images. Needs pandas.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from pathlib import Path
from unittest.mock import MagicMock

import torch
from _fixture import revision, wave, write

MODELS = 72  # as many as the code reads
AIMS = (0.3, 2.0, 4.0)


def model(n: int) -> torch.Tensor:
    """[6]: the wave of shift 1.7 n."""
    return wave(6, shift=1.7 * n)


def score(weights: torch.Tensor, aim: float) -> float:
    """The nearer to a wave of shift `aim` and half the size, the higher; in float64, so that no two are equal."""
    return float(1 / (1 + (weights.double() - wave(6, shift=aim, scale=0.2).double()).square().sum()))


def record(main: Path, aim: float) -> dict:
    """The script as it is run for both soups."""
    for name in ("wget", "clip", "matplotlib", "matplotlib.pyplot", "datasets", "utils"):
        sys.modules[name] = MagicMock()
    sys.modules["clip"].load.return_value = None, None
    sys.modules["utils"].get_model_from_sd = lambda weights, base: weights
    sys.modules["utils"].test_model_on_dataset = lambda weights, data: score(weights["w"], aim)
    for name in ("ImageNet2p", "ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetR", "ObjectNet", "ImageNetA"):
        setattr(sys.modules["datasets"], name, MagicMock(__name__=name))
    with tempfile.TemporaryDirectory() as folder, chdir(folder), open(os.devnull, "w") as quiet, redirect_stdout(quiet):
        for n in range(MODELS):
            torch.save({"w": model(n)}, f"model_{n}.pt")
        rows = [{"model_name": f"model_{n}", "ImageNet2p": score(model(n), aim)} for n in range(MODELS)]
        Path("individual_model_results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        sys.argv = ["main.py", "--greedy-soup", "--uniform-soup", "--model-location", "."]
        found = runpy.run_path(str(main), run_name="__main__")
    members = [int(name.removeprefix("model_")) for name in found["greedy_soup_ingredients"]]
    return {"aim": aim, "members": members, "greedy": found["greedy_soup_params"]["w"].tolist(),
            "uniform": found["uniform_soup"]["w"].tolist()}


if __name__ == "__main__":
    clone = Path(sys.argv[1]).resolve()
    made = revision(str(clone))
    records = [record(clone / "main.py", aim) for aim in AIMS]
    write("soups", __file__, {"mlfoundations/model-soups": made}, models=MODELS, records=records)
    print([r["members"] for r in records])
