"""`luthier export RUN --to adapter|model|gguf`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def command(
    run: Annotated[Path, typer.Argument(help="folder of a run", show_default=False)],
    to: Annotated[str, typer.Option("--to", metavar="FORM", help="adapter: a PEFT folder; model: merged into full weights; "
                                                                 "gguf: those in one file of llama.cpp, in 8 bits")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="a new or empty folder; RUN/exports/… if left "
                                                                          "out")] = None,
    arm: Annotated[str | None, typer.Option("--arm", help="whose model; the tuned one if left out")] = None,
    accept_terms: shared.Terms = None, as_json: shared.Json = False,
) -> None:
    """Copy the adapter, or merge it into a full model or a file of llama.cpp; receipts show that it is what was trained."""
    from luthier.core.run import Run
    from luthier.pipelines.exporting import export

    shared.accept(accept_terms)
    folder, receipts = export(Run.open(run), to, out=out, arm=arm)
    if as_json:
        print(json.dumps({"folder": str(folder), "receipts": [f.to_dict() for f in receipts]}, indent=1))
        return
    for f in receipts:
        bound = f" (at most {f.tolerance:.1e})" if f.tolerance is not None else f": {f.detail}"
        print(f"{f.name}: {f.verdict}" + (f", distance {f.difference:.1e}{bound}" if f.difference is not None else bound))
    print(f"Exported: {folder}")
