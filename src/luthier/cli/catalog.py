"""`luthier catalog [SLUG]`"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def command(
    slug: Annotated[str | None, typer.Argument(help="one technique, by slug or number")] = None,
    as_json: shared.Json = False,
) -> None:
    """The 210 published techniques: what each does, its oracles, and what stands behind it here."""
    from luthier.core import catalog
    from luthier.core.index import rows

    components = [(r["kind"], r["name"], r["seeds"]) for r in rows()]
    if slug is None:
        found = catalog.rows(components)
        if as_json:
            print(json.dumps(found, ensure_ascii=False))
            return
        for row in found:
            print(f"{row['id']:>3} {row['status']:<8} {row['slug']:<28} {row['kind']:<12} {row['summary']}")
        running = sum(r["status"] != "-" for r in found)
        print(f"\n{len(found)} techniques, {running} run here so far. luthier catalog SLUG shows one.")
        return
    row = catalog.row(slug, components)
    if as_json:
        print(json.dumps(row, ensure_ascii=False, indent=1))
        return
    print(f"{row['id']} {row['name']}: {row['title']}\n{row['summary']}\n\nstatus: {row['status']}   home: {row['home']}")
    print("components: " + (", ".join(f"{c['kind']} {c['name']}" for c in row["components"]) or "none named"))
    print(f"works when: {row['works_when']}\noracles:")
    for oracle in row["oracles"]:
        print(f"  {oracle['n']}. {oracle['text']}")
