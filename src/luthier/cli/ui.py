"""`luthier ui [RUNS_DIR]`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def command(
    runs: Annotated[Path, typer.Argument(metavar="[RUNS_DIR]", help="folder of the runs", show_default="runs")] = Path("runs"),
    host: shared.Host = "127.0.0.1", port: shared.Port = 7860, token_file: shared.TokenFile = None,
    max_mb: Annotated[int, typer.Option("--max-mb", min=1, help="largest file that may be dropped, in 1 000 000 bytes; five "
                                        "times as much at once")] = 200,
) -> None:
    """A web page over the runs of a folder: adapt, watch, compare, audit, and the catalogue. Nothing leaves this machine."""
    from luthier.core.errors import UserError
    from luthier.serving.limits import bound, check_host, read_token

    token = read_token(token_file) if token_file else None
    check_host(host, token)
    if (runs / "run.json").exists():
        raise UserError(f"{runs} is a run. Give the folder that holds it: luthier ui {runs.parent}")
    if runs.exists() and not runs.is_dir():
        raise UserError(f"{runs} is a file. Give a folder of runs, which need not exist yet.")
    try:
        from luthier.ui.server import run
    except ModuleNotFoundError as error:
        raise UserError(f'The page needs the package {error.name}. Install it: pip install "luthier[ui]"') from None
    from luthier.ui.studio import Studio
    from luthier.ui.uploads import Most

    with bound(host, port) as listening:
        run(Studio(runs, Most(file_megabytes=max_mb, megabytes=5 * max_mb)), listening, token)
