"""`luthier tune DATA`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def command(
    data: Annotated[list[str], typer.Argument(
        help="rows in JSON lines, JSON, CSV, TSV, Parquet, Arrow or a saved dataset, in any format of docs/rows.md; .txt and "
             ".md files to be read on; or what luthier data left. Several files: FILE=WEIGHT draws from them in these "
             "proportions")],
    base: shared.Base = None, out: shared.Out = None, recipe: shared.RecipeOption = None, seed: shared.Seed = None,
    method: shared.Method = None, objective: shared.Objective = None, regularizer: shared.Regularizer = None,
    optimizer: shared.Optimizer = None, decoder: shared.Decoder = None, metric: shared.Metric = None,
    sets: shared.Sets = None, accept_terms: shared.Terms = None, exact: shared.Exact = False,
    fresh: shared.Fresh = False, as_json: shared.Json = False,
    executor: shared.Executor = "local",
) -> None:
    """Examples in, a tuned model out, scored on rows that were kept out of training."""
    from luthier.pipelines import jobs
    from luthier.pipelines.overrides import override

    shared.accept(accept_terms)
    made = jobs.tune(data, recipe=recipe or "tune", objective=objective, sets=sets or ())
    parts = {"method": method or [], "regularizer": regularizer or [], "optimizer": optimizer or [],
             "decoder": decoder or [], "metric": metric or []}
    made = override(made, base=base, seed=seed, parts=parts, sets=sets or ())
    folder = out or Path("runs") / Path(data[0]).stem
    run = jobs.run(made, folder, fresh=fresh, exact=exact, watcher=shared.watcher(as_json), executor=executor)
    shared.finish(run, as_json)
