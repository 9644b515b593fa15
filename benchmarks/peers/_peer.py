"""What the peers' scripts share: reading a workload, the peak after the imports, and the closing line."""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import measure


def peak_mb() -> float:
    """The most memory this process has had resident, in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)


def options(about: str | None, **further: Any) -> argparse.Namespace:
    """FOLDER, --steps and --label, and whatever else."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=-1, help="optimizer steps; all of the workload if left out")
    parser.add_argument("--label", default="0")
    for name, action in further.items():
        parser.add_argument(f"--{name}", **action)
    return parser.parse_args()


def workload(folder: Path) -> dict[str, Any]:
    """workload.json."""
    made: dict[str, Any] = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
    return made


def tokens_in(made: dict[str, Any], steps: int) -> int:
    """Tokens of the first `steps` batches, padding not counted and epoch after epoch; of the whole training when it is -1."""
    sizes, lengths = made["batches"], iter([len(r["ids"]) for r in made["order"]])
    batches = [sum(islice(lengths, size)) for size in sizes]
    return sum(islice(cycle(batches), steps if steps > 0 else len(sizes) * made["epochs"]))


def initialise(model: Any, folder: Path) -> None:
    """Set adapter and head to those that our own training starts from, where the workload has them.

    Raises:
        ValueError: the adapter has other weights than ours.
    """
    import torch
    from safetensors.torch import load_file

    if not (folder / "initial.safetensors").exists():
        return
    given = load_file(folder / "initial.safetensors")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and ("lora_" in name or name[:5] == "head.")}
    if set(given) != set(trained):
        raise ValueError(f"adapter or head differ: {sorted(set(given) ^ set(trained))[:4]}")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(given[name])


def finish(made: dict[str, Any], steps: int, seconds: float, losses: Sequence[float], floor_mb: float,
           packages: Sequence[str], peak: float, **more: Any) -> None:
    """Print the result. `seconds` is the peer's own account of its training."""
    tokens = tokens_in(made, steps)
    print(json.dumps({"tokens_per_second": tokens / seconds, "tokens": tokens, "seconds": seconds, "losses": list(losses),
                      "floor_mb": floor_mb, "maxrss_mb": peak, "versions": measure.versions(packages), **more}), flush=True)
