"""`luthier doctor [RUN]`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import _shared as shared

SIGNS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


def command(
    run: Annotated[Path | None, typer.Argument(help="a run that is unfinished or may be damaged")] = None,
    as_json: shared.Json = False,
) -> None:
    """What is wrong here, and the one command that mends it. Exit code 2 if something fails."""
    from luthier.engine.checkup import check_all

    results = list(check_all(run))
    if as_json:
        print(json.dumps({"checks": [r.to_dict() for r in results]}, ensure_ascii=False, indent=1))
    else:
        for r in results:
            print(f"{SIGNS[r.verdict]}  {r.name}: {r.sentence}")
            if r.command and r.verdict != "ok":
                print(f"      mend: {r.command}")
    if any(r.verdict == "fail" for r in results):
        raise typer.Exit(2)
