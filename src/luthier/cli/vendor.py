"""`luthier vendor MODEL --out DIR`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="packaged model, local folder, or hub id; the customer's too")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="folder in which the tuned part is kept; one that holds a "
                                                                   "part already answers with it, and trains no more")],
    layer: Annotated[int, typer.Option("--layer", min=0, help="layers that the customer holds beside the embedding")] = 0,
    method: Annotated[str, typer.Option("--method", metavar=shared.SPEC, help="how the part is tuned; one that leaves an "
                                                                              "adapter")] = "lora:rank=8",
    optimizer: Annotated[str, typer.Option("--optimizer", metavar=shared.SPEC, help="how gradients move weights")] = "adamw",
    clip: Annotated[float, typer.Option("--clip", min=0, help="norm above which the part's gradient is scaled down; 0 = never")]
    = 1.0,
    host: shared.Host = "127.0.0.1", port: shared.Port = 8001, token_file: shared.TokenFile = None,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1024, help="largest message")] = 64_000_000,
    seed: shared.Seed = None, accept_terms: shared.Terms = None,
) -> None:
    """The vendor's side of split-and-privatize: tune and serve the upper part of a model on states that a customer sends."""
    from luthier.core.component import build
    from luthier.core.errors import UserError
    from luthier.core.files import Journal
    from luthier.core.rng import Rng
    from luthier.core.step import FitCtx
    from luthier.serving.limits import Limits, bound, check_host, read_token

    shared.accept(accept_terms)
    token = read_token(token_file) if token_file else None
    check_host(host, token)
    try:
        from luthier.serving.vendor import run
    except ModuleNotFoundError as error:
        raise UserError(f'Serving needs the package {error.name}. Install it: pip install "luthier[serve]"') from None
    from luthier.core.artifact import open_artifact
    from luthier.engine.models import add_tuned
    from luthier.engine.vendor import Vendor
    from luthier.engine.workshop import Engine

    limits = Limits(max_bytes=max_bytes, body_seconds=120.0)
    with bound(host, port) as listening:
        engine, part = Engine(exact=True), out / "part"
        (out / "base").mkdir(parents=True, exist_ok=True)
        ctx = FitCtx(Rng(seed or 0).within("vendor"), out / "base", Journal(out / "journal.jsonl"), engine, log=typer.echo)
        step = build("step", {"use": "base", "model": model})
        step.check()
        loaded = engine.fresh(step.run({}, ctx))
        if part.exists():
            made = open_artifact(part)
            if made.meta["layer"] != layer:
                raise UserError(f"--layer {layer}: the part in {part} begins above layer {made.meta['layer']}.")
            vendor = Vendor(add_tuned(loaded, made), layer, ctx)
        else:
            vendor = Vendor(loaded, layer, ctx, build("method", method), build("optimizer", optimizer), clip)
        typer.echo(f"http://{host}:{port} holds {vendor.about['name']} above layer {layer}, "
                   f"{'to answer' if part.exists() else 'to be tuned'}", err=True)
        run(vendor, listening, limits, part, token)
