"""`luthier evaluate RUN DATA`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def command(
    run: Annotated[Path, typer.Argument(help="folder of a run with a tuned model")],
    data: Annotated[str, typer.Argument(help="rows the model was not trained on: a file, a "
                                       "saved dataset, or what a data command left")],
    out: Annotated[Path | None, typer.Option("--out", metavar="RUN_DIR", help="folder of this evaluation")] = None,
    decoder: shared.Decoder = None, metric: shared.Metric = None, accept_terms: shared.Terms = None,
    exact: shared.Exact = False, fresh: shared.Fresh = False, as_json: shared.Json = False,
    executor: shared.Executor = "local",
) -> None:
    """Score the base and the tuned model of a run on further rows; rows it was trained on are refused."""
    from luthier.core.run import Run
    from luthier.pipelines import jobs
    from luthier.pipelines.overrides import override

    shared.accept(accept_terms)
    source = Run.open(run)
    made = override(jobs.evaluate(source, data), parts={"decoder": decoder or [], "metric": metric or []})
    folder = out or run / f"evaluate-{Path(data).stem}"
    finished = jobs.run(made, folder, fresh=fresh, exact=exact, watcher=shared.watcher(as_json), executor=executor)
    shared.finish(finished, as_json)
