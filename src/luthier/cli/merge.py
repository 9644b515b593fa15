"""`luthier merge MODEL… --rule RULE [--base BASE] --out DIR`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def command(
    models: Annotated[list[str], typer.Argument(metavar="MODEL…", help="runs, model folders, adapters, deltas, packaged models "
                                                                       "or hub ids; their order is that of a rule's numbers")],
    rule: Annotated[str, typer.Option("--rule", metavar=shared.SPEC, help="how they are merged (luthier list weight_rule)")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="a new or empty folder; the same command goes on where it "
                                                                   "stopped")],
    base: shared.Base = None, seed: shared.Seed = None, accept_terms: shared.Terms = None, as_json: shared.Json = False,
) -> None:
    """Merge models by a rule on their weights, one tensor after the other: models may be larger than memory."""
    from luthier.pipelines.merging import merge

    shared.accept(accept_terms)
    watcher = shared.watcher(as_json)
    folder, receipts = merge(models, rule, out, base=base, seed=seed or 0, log=watcher.log, progress=watcher.progress("merge"))
    if as_json:
        print(json.dumps({"folder": str(folder), "receipts": [f.to_dict() for f in receipts]}, indent=1))
        return
    for f in receipts:
        print(f"{f.name}: {f.verdict} ({f.detail})")
    print(f"Merged: {folder}")
