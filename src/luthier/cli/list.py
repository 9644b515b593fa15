"""`luthier list [KIND]`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def command(
    kind: Annotated[str | None, typer.Argument(help="only this kind: method, objective, metric, …; base: packaged "
                                                    "models")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="with methods: train each on tiny models and measure what it costs and "
                                                        "allows; takes minutes")] = False,
    as_json: shared.Json = False,
) -> None:
    """The components, by kind."""
    from luthier.core.errors import UserError, nearest
    from luthier.core.index import installed as rows

    if probe:
        if kind not in ("method", "methods"):
            raise UserError(f"--probe measures methods: luthier list methods --probe, not {kind or 'everything'}.")
        _probed(as_json)
        return
    if kind == "base":
        _bases(as_json)
        return
    found = list(rows())
    if kind is not None:
        wanted = kind.replace("-", "_")
        kinds = {r["kind"] for r in found}
        wanted = {f"{k}s": k for k in kinds}.get(wanted, wanted)  # `list methods` says the same
        if wanted not in kinds:
            shown = {k.replace("_", "-") for k in kinds} | {"base"}
            raise UserError(f"There is no kind '{kind}'. {nearest(kind.replace('_', '-'), shown)}")
        found = [r for r in found if r["kind"] == wanted]
    if as_json:
        from luthier.core import catalog

        known = catalog.statuses((r["kind"], r["name"], r["version"], r["seeds"]) for r in rows())
        told = [{**r, "status": {str(seed): known.get(seed, "-") for seed in r["seeds"]}} for r in found]
        print(json.dumps(told, ensure_ascii=False))
        return
    last = ""
    for row in found:
        if row["kind"] != last:
            print(("\n" if last else "") + row["kind"].replace("_", "-"))
            last = row["kind"]
        keys = ", ".join(row["schema"].get("properties", {}))
        print(f"  {row['name']:<20} {row['summary']}" + (f"  [{keys}]" if kind else ""))


def _probed(as_json: bool) -> None:
    """Every method, measured here and now."""
    from tempfile import TemporaryDirectory

    from luthier.engine.workshop import Engine
    from luthier.pipelines import methods_probe

    def line(cells: list[str]) -> None:
        if not as_json:
            print("  ".join(f"{c:<{w}}" for c, w in zip(cells, (15, 15, 18, 10, 6, 11, 10, 11, 10), strict=True)).rstrip())

    line(list(methods_probe.HEAD))
    with TemporaryDirectory() as folder, methods_probe.quietly():
        rows = list(methods_probe.probe(Engine(threads=1, exact=True), Path(folder),
                                        told=lambda row: None if row.refused else line(methods_probe.shown(row))))
    if as_json:
        print(methods_probe.as_json(rows))
        return
    for row in rows:
        if row.refused:
            print(f"  {row.method} refuses the {row.architecture}: {row.refused}")


def _bases(as_json: bool) -> None:
    """The packaged models."""
    from luthier.engine.packages import PACKAGES

    found = [{"name": n, "note": p.note, "terms": p.terms, "megabytes": p.megabytes} for n, p in PACKAGES.items()]
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print("Packaged models. A local folder with safetensors or a hub id (org/name@revision) is a base as well.")
    for row in found:
        terms = f"; needs --accept-terms {row['terms']}" if row["terms"] else ""
        print(f"  {row['name']:<22} {row['megabytes']:>5,} MB  {row['note']}{terms}")
