"""`luthier compare DATA`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli import _shared as shared


def command(
    data: Annotated[list[str], typer.Argument(help="rows as for tune; several files are one set of rows, FILE=WEIGHT mixes")],
    base: shared.Base = None, out: shared.Out = None, seed: shared.Seed = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="trainings of each arm; from 3 on verdicts are about "
                                                                     "methods")] = 1,
    learning_rate: Annotated[str, typer.Option("--learning-rate", metavar="HOW", help="sweep[:TRIALS] on dev for each arm; "
                                               "default, the method's own; or a number for all")] = "sweep",
    recipe: Annotated[shared.Spec, typer.Option("--recipe", metavar="NAME_OR_FILE", help="another recipe")] = None,
    method: shared.Method = None,
    objective: Annotated[shared.Spec, typer.Option("--objective", metavar=shared.SPEC, help="what is minimised")] = None,
    regularizer: Annotated[shared.Spec, typer.Option("--regularizer", metavar=shared.SPEC, help="added to training; none is "
                                                                                                 "an arm without")] = None,
    optimizer: shared.Optimizer = None, decoder: shared.Decoder = None, metric: shared.Metric = None,
    sets: shared.Sets = None, accept_terms: shared.Terms = None, exact: shared.Exact = False,
    fresh: shared.Fresh = False, as_json: shared.Json = False, executor: shared.Executor = "local",
) -> None:
    """Several ways to tune, on equal rows and budget, with verdicts. Repeat one option, one arm each:
    --method lora --method bitfit."""
    from luthier.pipelines import comparing

    shared.accept(accept_terms)
    parts = {"method": method or [], "objective": objective or [], "regularizer": regularizer or [],
             "optimizer": optimizer or [], "decoder": decoder or [], "metric": metric or [], "recipe": recipe or []}
    made = comparing.plan(data, parts=parts, base=base, seed=seed, seeds=seeds, sets=sets or (), learning_rate=learning_rate)
    folder = out or Path("runs") / f"compare-{Path(data[0]).stem}"
    told = comparing.compare(made, folder, fresh=fresh, exact=exact, watcher=shared.watcher(as_json), executor=executor)
    if as_json:
        print(json.dumps(told, ensure_ascii=False, indent=1))
    else:
        _print(told, folder)


def _print(told: dict[str, Any], folder: Path) -> None:
    from luthier.pipelines.report import compare as report

    print("\n".join(report.lines(told)))
    print(f"Report: {folder / 'report.html'}")
