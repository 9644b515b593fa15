"""`luthier list [KIND]`"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def command(
    kind: Annotated[str | None, typer.Argument(help="only this kind: method, objective, metric, …; base: packaged "
                                                    "models")] = None,
    as_json: shared.Json = False,
) -> None:
    """The components, by kind."""
    from luthier.core.errors import UserError, nearest
    from luthier.core.index import rows

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
