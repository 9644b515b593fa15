"""`luthier serve RUN…`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli import _shared as shared

if TYPE_CHECKING:
    from luthier.serving.shelf import Shelf

ENGINES = ("luthier", "llamacpp")


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="folders of runs", show_default=False)],
    host: shared.Host = "127.0.0.1", port: shared.Port = 8000, token_file: shared.TokenFile = None,
    queue: Annotated[int, typer.Option("--queue", min=0, help="answers that may wait; more get 429")] = 64,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="longest time of a request")] = 120.0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="most new tokens of an answer")] = 1024,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1024, help="largest body of a request")] = 1_000_000,
    engine: Annotated[str, typer.Option("--engine", help="what computes: luthier, or llamacpp, from the file that luthier "
                                        "export --to gguf made of one run")] = "luthier",
    log_text: Annotated[bool, typer.Option("--log-text", help="write prompts and answers to the log, too")] = False,
    accept_terms: shared.Terms = None,
) -> None:
    """Serve the arms of runs over HTTP, in OpenAI's dialect: chat, completions, embeddings, answers with citations."""
    from luthier.core.errors import UserError
    from luthier.serving.limits import Limits, bound, check_host, read_token

    shared.accept(accept_terms)
    if engine not in ENGINES:
        raise UserError(f"--engine {engine}: legal are {', '.join(ENGINES)}.")
    token = read_token(token_file) if token_file else None
    check_host(host, token)
    try:
        from luthier.serving.server import run
    except ModuleNotFoundError as error:
        raise UserError(f'Serving needs the package {error.name}. Install it: pip install "luthier[serve]"') from None
    from luthier.serving.served import Catalogue

    limits = Limits(queue=queue, request_seconds=seconds, max_tokens=max_tokens, max_bytes=max_bytes)
    with bound(host, port) as listening:
        run(Catalogue(runs, _shelf(engine, runs)), listening, limits, token, log_text)


def _shelf(engine: str, runs: list[Path]) -> Shelf | None:
    """What loads and computes; None leaves it to the runs."""
    if engine == "luthier":
        return None
    from luthier.serving.gguf import GgufShelf

    return GgufShelf(runs)
