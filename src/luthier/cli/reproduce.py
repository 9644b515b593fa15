"""`luthier reproduce [SLUG]`"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli import _shared as shared

if TYPE_CHECKING:
    from luthier.core.kinds import Study
    from luthier.pipelines.reproducing import Reproduction


def command(
    slug: Annotated[str | None, typer.Argument(help="a published technique with a study, by slug or number")] = None,
    every: Annotated[bool, typer.Option("--all", help="every study that has no recorded result of its version yet")] = False,
    scale: Annotated[str, typer.Option("--scale", help="smoke (seconds), default (about 5 minutes) or large")] = "default",
    record: Annotated[bool, typer.Option("--record", help="keep the result in the package, for luthier catalog")] = False,
    budget_hours: Annotated[float | None, typer.Option("--budget-hours", metavar="H", min=0, help="with --all: start no "
                                                       "further study after so many hours")] = None,
    out: shared.Out = None, accept_terms: shared.Terms = None, fresh: shared.Fresh = False, exact: shared.Exact = False,
    as_json: shared.Json = False, executor: shared.Executor = "local",
) -> None:
    """Whether a published claim holds here: its arms run again, judged, the paper's numbers beside ours."""
    from luthier.core.errors import UserError
    from luthier.pipelines import reproducing

    shared.accept(accept_terms)
    if every == (slug is not None):
        names = ", ".join(s.info.name for s in reproducing.all_studies())
        raise UserError(f"Name one study, or --all. Studies: {names}.")
    if budget_hours is not None and not every:
        raise UserError("--budget-hours goes with --all.")
    if every and out is not None:
        raise UserError("--out names the folder of one study; --all keeps each in a folder of its own below runs/.")
    if record and scale == "smoke":
        raise UserError("--record keeps results, and a smoke run has none: it only passes through every line.")
    studies = [reproducing.find(slug)] if slug else reproducing.pending(reproducing.all_studies())
    began = time.monotonic()
    for study in studies:
        if budget_hours is not None and time.monotonic() - began >= budget_hours * 3600:
            print(f"The budget of {budget_hours:g} h is spent; the same command goes on with {study.info.name}.")
            return
        folder = out or Path("runs") / f"study-{study.info.name}-{scale}"
        _one(study, scale, folder, record, fresh, exact, as_json, executor)
    if every and not studies:
        print("Every study has a recorded result of its current version.")


def _one(study: Study, scale: str, folder: Path, record: bool, fresh: bool, exact: bool, as_json: bool, executor: str) -> None:
    from luthier.core import recorded
    from luthier.pipelines import reproducing

    if not as_json:
        for line in reproducing.stated(study, scale).lines():
            print(line, flush=True)
    found = reproducing.reproduce(study, scale, folder, watcher=shared.watcher(as_json), fresh=fresh, exact=exact,
                                  executor=executor)
    kept = recorded.write(found.record()) if record else None
    _show(found, kept, as_json)


def _show(found: Reproduction, kept: Path | None, as_json: bool) -> None:
    from luthier.pipelines import evidence

    if as_json:
        print(json.dumps({**found.record(), "recorded": str(kept) if kept else None}, ensure_ascii=False, indent=1))
        return
    for line in evidence.told(found):
        print(line)
    if kept:
        print(f"Recorded: {kept}")
