"""`luthier list [KIND]`"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def command(
    kind: Annotated[str | None, typer.Argument(help="only this kind: method, objective, metric, …")] = None,
    as_json: shared.Json = False,
) -> None:
    """The components, by kind."""
    from luthier.core.errors import UserError, nearest
    from luthier.core.index import rows

    found = list(rows())
    if kind is not None:
        wanted = kind.replace("-", "_")
        kinds = {r["kind"] for r in found}
        if wanted not in kinds:
            raise UserError(f"There is no kind '{kind}'. {nearest(wanted, kinds)}")
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
