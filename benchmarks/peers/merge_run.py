"""One contender's average of two checkpoints: `merge_run.py copy|luthier|mergekit ONE TWO OUT`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import measure

Work = Callable[[list[Path], Path], None]


def by_copying() -> Work:
    """Both checkpoints, written again and flushed."""
    def work(given: list[Path], out: Path) -> None:
        for folder in given:
            shutil.copytree(folder, out / folder.name)
            flush(out / folder.name)

    return work


def by_luthier() -> Work:
    import transformers

    from luthier.engine import workshop
    from luthier.pipelines.merging import merge

    _ = (transformers.AutoModelForCausalLM, workshop)  # loaded late otherwise, and then not part of the imports
    return lambda given, out: merge([str(folder) for folder in given], "linear", out) and None


def by_mergekit() -> Work:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    def work(given: list[Path], out: Path) -> None:
        models = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in given]
        config = MergeConfiguration.model_validate({"merge_method": "linear", "models": models, "dtype": "bfloat16"})
        run_merge(config, str(out), MergeOptions(copy_tokenizer=True))
        flush(out)

    return work


def flush(folder: Path) -> None:
    """Wait until the disk has what was written."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def main() -> None:
    name, *folders = sys.argv[1:]
    work = {"copy": by_copying, "luthier": by_luthier, "mergekit": by_mergekit}[name]()
    began = time.perf_counter()
    work([Path(f) for f in folders[:2]], Path(folders[2]))
    seconds = time.perf_counter() - began
    print(measure.MARK)
    print(json.dumps({"seconds": round(seconds, 2)}))


if __name__ == "__main__":
    main()
